"""Ranges of files, asked for by SHA-256 and streamed in chunks (specs/artifacts/README.md).

Theory of operation:

1. A stream carries many asks; answers come in the order of the asks, so that the next one is being
   read from the disk before the last has left.
2. Who asks always reads, and has what it asked for in memory until it is taken: it asks for no
   more than that. Who answers waits for the muxer's credit, and holds READ bytes or two of a file.
3. What is served is the node's to say, file by file. Nothing here knows a path.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Protocol as Shape

import trio

from p2p_mesh.core.artifacts import (
    CHUNK,
    MAX_ASKED,
    MAX_HELD,
    MAX_RANGE,
    AskHeld,
    Data,
    Found,
    Get,
    HeldFiles,
    Lacking,
    data_frames,
)
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.wire import ErrorMessage, decode
from p2p_mesh.errors import MeshError, Overloaded, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import Protocol, Protocols, Stream

LIMIT = 1 << 20
"""Bytes of a message: a `held` of all that it may name."""

TOGETHER = 4 * CHUNK
"""Bytes that are sent at a time,"""
READ = 4 * TOGETHER
"""and that are read from a file."""

MAX_TO_ONE = 4
"""Streams on which one member is served,"""
MAX_STREAMS = 16
"""and all of them together."""

BUSY = 2.0
"""Seconds after which one that found no room tries again."""

SILENCE = 20.0
"""Seconds without a message before answers are given up."""

IDLE = 60.0
"""Seconds without an ask, after which a stream is closed."""

PROTOCOL = Protocol("artifacts", LIMIT)

_Asked = Get | AskHeld
_Answered = Found | Data | Lacking | HeldFiles | ErrorMessage


class Blob(Shape):
    """A file that is served. It need not be one on the disk."""

    @property
    def size(self) -> int: ...

    async def read(self, offset: int, length: int) -> bytes:
        """That range, which lies within the file. Raises Unavailable where it is gone."""
        ...


class Library(Shape):
    """What this node serves, now."""

    def find(self, sha256: Digest) -> Blob | None: ...

    def held(self, manifest: Digest) -> Collection[Digest]:
        """The files of that package."""
        ...


class Artifacts:
    """Both ends. A node that has no library serves nothing, and does not speak the protocol."""

    def __init__(
        self,
        protocols: Protocols,
        offences: Offences,
        using: Callable[[PeerId], AbstractAsyncContextManager[None]],
        alive: Callable[[PeerId], None],
    ) -> None:
        """`using`: connects to a peer, and watches it closely meanwhile. `alive` is told when one
        gives a sign of life.
        """
        self._protocols = protocols
        self._offences = offences
        self._using = using
        self._alive = alive
        self._streams: Counter[PeerId] = Counter()
        self._lines: set[Line] = set()

    def fail(self, peer: PeerId, error: MeshError) -> None:
        """Ends what is asked of a peer that gives no sign of life."""
        for line in tuple(self._lines):
            if line.peer == peer:
                line.fail(error)

    def serve(self, library: Library) -> None:
        """From now on, serves members what the library holds."""

        async def serve(stream: Stream, member: Member) -> None:
            with self._counted(member.peer), bare():
                await _Served(stream, library, self._alive).run()

        self._protocols.serve(PROTOCOL, serve)

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        if self._streams[peer] >= MAX_TO_ONE or self._streams.total() >= MAX_STREAMS:
            raise Overloaded(f"{self._streams.total()} streams are being served", retry_after=BUSY)
        self._streams[peer] += 1
        try:
            yield
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    @asynccontextmanager
    async def open(self, peer: PeerId) -> AsyncIterator[Line]:
        """A stream to a member, connecting first if need be; what is under way when the context is
        left is lost. RemoteErrors that leave it are noted as the peer's fault. Raises Unavailable.
        """
        try:
            async with self._using(peer), self._protocols.open(peer, PROTOCOL) as stream:
                line = Line(stream, self._alive)
                with bare():
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(line.run)
                        self._lines.add(line)
                        try:
                            yield line
                        finally:
                            self._lines.discard(line)
                            nursery.cancel_scope.cancel()
        except RemoteError as error:
            self._offences.refuse(peer, PROTOCOL.name, error)
            raise


class Line:
    """A stream on which a peer is asked. Whoever waits for an answer may be cancelled."""

    def __init__(self, stream: Stream, alive: Callable[[PeerId], None]) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._alive = alive
        self._pending: deque[_Answer] = deque()
        self._reading = trio.CancelScope()
        self._error: MeshError | None = None

    async def get(self, sha256: Digest, offset: int, length: int) -> memoryview | None:
        """As much of that range as the file has; None: the peer does not serve the file. Several
        may wait at a time, MAX_ASKED at most. Raises Unavailable and RemoteError.
        """
        answer = _Range(offset, length)
        await self._ask(Get(sha256=sha256, offset=offset, length=length), answer)
        return answer.taken()

    async def whole(self, sha256: Digest, limit: int) -> bytes | None:
        """All of a small file, checked; None as of `get`. Raises Unavailable and RemoteError, also
        for one of more than `limit` bytes.
        """
        answer = _Range(0, MAX_RANGE)
        await self._ask(Get(sha256=sha256, length=MAX_RANGE), answer)
        if (data := answer.taken()) is None:
            return None
        if answer.size > limit:
            raise RemoteError(f"a file of {answer.size} bytes, where {limit} are the most")
        rest = [
            await self.get(sha256, offset, MAX_RANGE) or memoryview(b"")
            for offset in range(MAX_RANGE, answer.size, MAX_RANGE)
        ]
        return await trio.to_thread.run_sync(_joined, (data, *rest), sha256)

    async def held(self, manifest: Digest) -> frozenset[Digest]:
        """The files of a package that the peer serves. Raises Unavailable and RemoteError."""
        answer = _Held()
        await self._ask(AskHeld(manifest=manifest), answer)
        return answer.files

    async def _ask(self, message: _Asked, answer: _Answer) -> None:
        if self._error is not None:
            raise self._error
        if not self._pending:
            self._expect()
        self._pending.append(answer)
        await self._stream.tell(message)
        await answer.over.wait()
        if answer.error is not None:
            raise answer.error

    def _expect(self) -> None:
        """The peer has SILENCE from now, or a second less: not every frame moves a deadline."""
        now = trio.current_time()
        if not now + SILENCE - 1 <= self._reading.deadline < math.inf:
            self._reading.deadline = now + SILENCE
            self._alive(self.peer)

    async def run(self) -> None:
        """Reads as long as the stream lives."""
        try:
            with self._reading:
                await self._stream.listen(self._hear)
            self.fail(Unavailable(f"{self.peer} went silent"))
        except MeshError as error:
            self.fail(error)
        await self._stream.reset()

    def fail(self, error: MeshError) -> None:
        """Nothing more is to be expected of the peer."""
        self._error = self._error or error
        for answer in self._pending:
            answer.finish(self._error)
        self._reading.cancel()

    def _hear(self, frame: bytes) -> None:
        message: _Answered = decode(frame, _Answered)
        if isinstance(message, ErrorMessage):
            raise message.error()
        if not self._pending:
            raise RemoteError(f"{self.peer} answers what nobody asked")
        if self._pending[0].hear(message):
            self._pending.popleft().finish()
        if self._pending:
            self._expect()
        else:
            self._reading.deadline = math.inf


class _Answer:
    """What came of one ask."""

    def __init__(self) -> None:
        self.over = trio.Event()
        self.error: MeshError | None = None

    def hear(self, message: object) -> bool:
        """Takes a message; True if it was the last. Raises RemoteError."""
        raise RemoteError(f"the answer to another question: {type(message).__name__}")

    def finish(self, error: MeshError | None = None) -> None:
        self.error = error
        self.over.set()


class _Held(_Answer):
    def __init__(self) -> None:
        super().__init__()
        self.files: frozenset[Digest] = frozenset()

    def hear(self, message: object) -> bool:
        if not isinstance(message, HeldFiles):
            return super().hear(message)
        self.files = frozenset(message.files)
        return True


class _Range(_Answer):
    def __init__(self, offset: int, length: int) -> None:
        super().__init__()
        self._offset, self._length = offset, length
        self.size = 0
        """Of the whole file."""
        self._buffer: memoryview | None = None
        self._filled = 0

    def hear(self, message: object) -> bool:
        if isinstance(message, Data) and self._buffer is not None:
            return self._fill(self._buffer, message.chunk)
        if isinstance(message, Found) and self._buffer is None:
            self.size = message.size
            length = max(0, min(self._length, message.size - self._offset))
            self._buffer = memoryview(bytearray(length))
            return not length
        if isinstance(message, Lacking) and self._buffer is None:
            return True
        return super().hear(message)

    def _fill(self, buffer: memoryview, chunk: memoryview) -> bool:
        end = self._filled + len(chunk)
        if not chunk or end > len(buffer):
            raise RemoteError(f"{len(chunk)} bytes where {len(buffer) - self._filled} are left")
        buffer[self._filled : end] = chunk
        self._filled = end
        return end == len(buffer)

    def taken(self) -> memoryview | None:
        return self._buffer


def _joined(parts: Sequence[memoryview], sha256: Digest) -> bytes:
    data = b"".join(parts)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RemoteError("a file with another SHA-256 than the one that was asked for")
    return data


class _Served:
    """A stream on which a member asks."""

    def __init__(self, stream: Stream, library: Library, alive: Callable[[PeerId], None]) -> None:
        self._stream = stream
        self._library = library
        self._alive = alive
        self._put, self._take = trio.open_memory_channel[_Asked](MAX_ASKED)
        self._patience = trio.CancelScope()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_all, nursery.cancel_scope)
            with suppress(Unavailable):  # the asker closed the stream, or is gone
                await self._hear_all()
            nursery.cancel_scope.cancel()

    async def _hear_all(self) -> None:
        while True:
            message: _Asked = await self._stream.hear(_Asked)
            try:
                self._put.send_nowait(message)
            except trio.WouldBlock as error:
                raise RemoteError(f"more than {MAX_ASKED} asks at a time") from error

    async def _answer_all(self, all_of_it: trio.CancelScope) -> None:
        while True:
            with trio.move_on_after(IDLE) as idle:
                asked = await self._take.receive()
            if idle.cancelled_caught:
                all_of_it.cancel()
                return
            if isinstance(asked, AskHeld):
                files = sorted(self._library.held(asked.manifest))[:MAX_HELD]
                await self._stream.tell(HeldFiles(files=tuple(files)))
            else:
                await self._answer(asked)

    async def _answer(self, asked: Get) -> None:
        blob = self._library.find(asked.sha256)
        if blob is None:
            await self._stream.tell(Lacking())
            return
        await self._stream.tell(Found(size=blob.size))
        end = min(asked.offset + asked.length, blob.size)
        put, take = trio.open_memory_channel[bytes | MeshError](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_ahead, blob, range(asked.offset, end, READ), end, put)
            async for data in take:
                if isinstance(data, MeshError):
                    raise data  # here, where no message is cut in the middle
                await self._send(memoryview(data))

    async def _send(self, data: memoryview) -> None:
        for start in range(0, len(data), TOGETHER):
            await self._stream.send_framed(data_frames(data[start : start + TOGETHER]))
            self._alive(self._stream.peer)  # it takes what it asked for


async def _read_ahead(
    blob: Blob, starts: range, end: int, put: trio.MemorySendChannel[bytes | MeshError]
) -> None:
    with put:
        try:
            for start in starts:
                await put.send(await blob.read(start, min(READ, end - start)))
        except MeshError as error:
            await put.send(error)
