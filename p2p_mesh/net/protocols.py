"""Framed streams, and the gate in front of every protocol.

A Stream carries frames (core/wire.py) over one libp2p stream. It ends well with `end`; an end
without it is a failure, since yamux shows a killed peer, a reset and a clean close alike. One
task reads a stream, and it must always read: libp2p resets a stream whose reader rests for
five seconds while its window is full. `drained` does that for those who cannot promise it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import trio
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.exceptions import StreamError
from libp2p.stream_muxer.exceptions import MuxedStreamError

from p2p_mesh.core.admission import may_open
from p2p_mesh.core.bursts import Bursts
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.offers import offer
from p2p_mesh.core.wire import End, ErrorMessage, Frames, decode, encode, framed
from p2p_mesh.errors import MeshError, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net.channel import Channel
from p2p_mesh.net.host import Host, name_of
from p2p_mesh.net.offences import Offences

VERSION = "1.0.0"
SEND_TIMEOUT = 30.0
CLOSE_TIMEOUT = 0.3
"""Seconds to say that a stream ends; where the peer hangs, its connection will tell."""

FOREIGN_LIMIT = 32 << 20
"""Bytes of a frame in a protocol of a backend, unless it says less."""

CREDIT = 32 << 20
"""Bytes that wait for a slow reader before its stream ends."""

_MOST_FRAMES = 1 << 20  # that wait: empty ones take credit of nothing

_BROKEN = (StreamError, IOException, RawConnError, MuxedStreamError, OSError)

T = TypeVar("T")


def protocol_id(name: str) -> str:
    return f"/meshnode/{name}/{VERSION}"


class Stream:
    """A framed stream to a peer. One task sends at a time, one receives."""

    def __init__(self, raw: Any, peer: PeerId, limit: int) -> None:
        self.peer = peer
        self._raw = raw
        # What libp2p has around it takes a lock, and so a turn of the loop, for each call.
        self._channel: Channel = raw.muxed_stream
        self._frames = Frames(limit)
        self._writing = trio.Lock()
        self._over = False

    async def send(self, frame: bytes) -> None:
        """Sends the body of one frame. Raises Unavailable."""
        if not self.send_nowait(frame):
            await self.send_framed(framed(frame))

    async def send_framed(self, frames: bytes) -> None:
        """Sends frames that are made already, with their lengths. Raises Unavailable."""
        try:
            with trio.fail_after(SEND_TIMEOUT):
                await self._write(frames)
        except trio.TooSlowError as error:
            raise Unavailable(f"{self.peer} took nothing for {SEND_TIMEOUT:g} s") from error
        except _BROKEN as error:
            raise Unavailable(f"the stream to {self.peer} broke") from error

    def send_nowait(self, frame: bytes) -> bool:
        """Sends it if that needs no waiting, and else nothing of it. Raises Unavailable."""
        try:
            return not self._writing.locked() and self._channel.write_nowait(framed(frame))
        except _BROKEN as error:
            raise Unavailable(f"the stream to {self.peer} broke") from error

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._channel.write(data)

    async def receive(self) -> bytes:
        """The next frame. Raises Unavailable where the stream ended, RemoteError where what
        came is no frame.
        """
        while (body := next(iter(self._frames), None)) is None:
            self._frames.feed(await self._read())
        return body

    async def listen(self, hear: Callable[[bytes], None]) -> None:
        """Gives every frame to `hear`, within the turn of the loop in which it came. Ends with what
        `receive` would raise, or with what `hear` raises.
        """

        def feed(data: bytes) -> None:
            if (body := self._frames.only(data)) is not None:
                hear(body)
                return
            self._frames.feed(data)
            for body in self._frames:
                hear(body)

        try:
            await self._channel.pour(feed)
        except _BROKEN as error:
            raise self._ended() from error

    async def _read(self) -> bytes:
        try:
            return await self._channel.read()
        except _BROKEN as error:
            raise self._ended() from error

    def _ended(self) -> MeshError:
        if self._frames.is_between:
            return Unavailable(f"{self.peer} closed the stream")
        return Unavailable(f"the stream to {self.peer} broke in the middle of a message")

    async def tell(self, message: object) -> None:
        await self.send(encode(message))

    async def hear(self, kind: Any) -> Any:
        """The next message, of one of the kinds in the union `kind`."""
        return decode(await self.receive(), kind)

    async def complain(self, error: MeshError) -> None:
        """Says why this side cannot go on, if the peer still listens."""
        with suppress(Unavailable), trio.move_on_after(CLOSE_TIMEOUT):
            await self.tell(ErrorMessage.of(error))

    async def close(self) -> None:
        """Ends this side's half; harmless when it has ended."""
        if self._over:
            return
        self._over = True
        with trio.move_on_after(CLOSE_TIMEOUT) as scope:
            scope.shield = True
            with suppress(*_BROKEN):
                await self._raw.close()

    async def reset(self) -> None:
        """Ends both halves at once; what is under way is lost."""
        self._over = True
        with trio.move_on_after(CLOSE_TIMEOUT) as scope:
            scope.shield = True
            with suppress(Exception):
                await self._raw.reset()


class Drained:
    """A stream whose frames are read as they come, and wait here; a serve.backend.Stream."""

    def __init__(self, stream: Stream, credit: int = CREDIT) -> None:
        self._stream = stream
        self._credit = credit
        self._frames: deque[bytes] = deque()
        self._held = 0
        self._sink: Callable[[bytes], None] | None = None
        self._end: MeshError | None = None
        self._came = trio.Event()

    async def send(self, frame: bytes) -> None:
        await self._stream.send(frame)

    def send_nowait(self, frame: bytes) -> bool:
        return self._stream.send_nowait(frame)

    async def receive(self) -> bytes:
        while not self._frames:
            await self._more()
        frame = self._frames.popleft()
        self._held -= len(frame)
        return frame

    async def listen(self, hear: Callable[[bytes], None]) -> None:
        while self._frames:
            hear(self._frames.popleft())
        self._held, self._sink = 0, hear
        try:
            while True:
                await self._more()
        finally:
            self._sink = None

    async def _more(self) -> None:
        if self._end is not None:
            raise self._end
        self._came = trio.Event()
        await self._came.wait()

    async def pump(self) -> None:
        """Reads until the stream ends, or holds more than its credit."""
        try:
            await self._stream.listen(self._hear)
        except MeshError as error:
            self.fail(error)

    def _hear(self, frame: bytes) -> None:
        if self._sink is not None:
            self._sink(frame)
            return
        self._frames.append(frame)
        self._held += len(frame)
        self._came.set()
        if self._held > self._credit or len(self._frames) > _MOST_FRAMES:
            raise Unavailable(f"{self._stream.peer} sent more than could be taken")

    def fail(self, error: MeshError) -> None:
        """Nothing more is to be expected of the peer; what came can still be received."""
        self._end = self._end or error
        self._came.set()


@asynccontextmanager
async def drained(stream: Stream, credit: int = CREDIT) -> AsyncIterator[Drained]:
    """Reads a stream for one that may rest between two frames."""
    frames = Drained(stream, credit)
    with bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(frames.pump)
            yield frames
            nursery.cancel_scope.cancel()


class Gathered(Generic[T]):
    """Items that wait for a stream, to travel together. A memory channel would do, and would cost
    two turns of the loop for each of them. One that comes alone, while nothing waits, is offered to
    `now`, which may send it at once.
    """

    def __init__(self, most: int, now: Callable[[T], bool] = lambda item: False) -> None:
        self._most = most
        self._now = now
        self._bursts = Bursts()
        self._items: deque[T] = deque()
        self._is_awaited = False
        self._is_over = False
        self._came = trio.Event()
        self._went = trio.Event()

    async def collect(self, items: AsyncIterator[T]) -> None:
        """Takes the items as they come, and rests while `most` of them wait."""
        offer(items, self._offered)
        async for item in items:
            if self._went_at_once(item):
                continue
            self._items.append(item)
            self._came.set()
            if len(self._items) >= self._most:
                self._went = trio.Event()
                await self._went.wait()
        self._is_over = True
        self._came.set()

    def _offered(self, item: T) -> bool:
        try:
            is_gone = self._went_at_once(item)
        except MeshError:  # whoever takes it will meet that too
            is_gone = False
        if not is_gone:
            self._bursts.refused()
        return is_gone

    def _went_at_once(self, item: T) -> bool:
        is_alone = self._bursts.is_alone(trio.current_time())
        return is_alone and self._is_awaited and not self._items and self._now(item)

    async def take(self, most: int) -> tuple[T, ...]:
        """What came since the last time; waits for one item at least. Nothing: it is over."""
        if not self._items and not self._is_over:
            self._came = trio.Event()
            self._is_awaited = True
            await self._came.wait()
            self._is_awaited = False
        batch = tuple(self._items.popleft() for _ in range(min(most, len(self._items))))
        self._went.set()
        return batch


@dataclass(frozen=True, slots=True)
class Protocol:
    name: str
    limit: int = FOREIGN_LIMIT
    """Bytes of one frame."""


Serve = Callable[[Stream, Member], Awaitable[None]]
Gate = Callable[[PeerId], Awaitable[Member | None]]


class Protocols:
    """Opens and serves the streams of admitted peers, and of nobody else."""

    def __init__(self, host: Host, gate: Gate, journal: Journal, offences: Offences) -> None:
        self._host = host
        self._gate = gate
        self._journal = journal
        self._offences = offences

    def serve(self, protocol: Protocol, serve: Serve) -> None:
        """Answers the streams that admitted peers open; `serve` ends them with `end`."""

        async def accept(raw: Any) -> None:
            member = await self._gate(name_of(raw))
            if member is None or not may_open(member.role, protocol.name):
                self._offences.note(name_of(raw), f"opened {protocol.name} without the right to")
                await raw.reset()
                return
            stream = Stream(raw, member.peer, protocol.limit)
            await self._attend(protocol, stream, member, serve)

        self._host.handle(protocol_id(protocol.name), accept)

    async def _attend(
        self, protocol: Protocol, stream: Stream, member: Member, serve: Serve
    ) -> None:
        try:
            await serve(stream, member)
        except RemoteError as error:
            self._offences.refuse(member.peer, protocol.name, error)
            await stream.complain(error)
        except MeshError as error:
            await stream.complain(error)
        except Exception as error:  # noqa: BLE001 - our own mistake must not end the host
            self._journal.error(
                "handler_failed", f"{protocol.name} failed: {error!r}", peer=member.peer
            )
            await stream.complain(MeshError("an internal error"))
        finally:
            await stream.close()

    @asynccontextmanager
    async def open(self, peer: PeerId, protocol: Protocol) -> AsyncIterator[Stream]:
        """A stream to an admitted peer. Raises Unavailable."""
        stream = await self.connect(peer, protocol)
        try:
            yield stream
        except BaseException:
            await stream.reset()
            raise
        await stream.close()

    async def connect(self, peer: PeerId, protocol: Protocol) -> Stream:
        """As `open`, for those who keep streams and close them on their own."""
        if await self._gate(peer) is None:
            raise Unavailable(f"{peer} is not connected")
        raw = await open_raw(self._host, peer, protocol.name)
        return Stream(raw, peer, protocol.limit)


async def open_raw(host: Host, peer: PeerId, name: str) -> Any:
    """A libp2p stream for one of our protocols. Raises Unavailable, which names the versions
    where the peer speaks another one.
    """
    try:
        return await host.open(peer, protocol_id(name))
    except Unavailable as error:
        head = f"/meshnode/{name}/"
        theirs = [known[len(head) :] for known in host.speaks(peer) if known.startswith(head)]
        if theirs and VERSION not in theirs:
            versions = ", ".join(sorted(theirs))[:100]
            raise Unavailable(f"the peer speaks {name} {versions}, this node {VERSION}") from error
        raise


async def hear_end(stream: Stream) -> None:
    """Waits for `end`; raises what the peer says instead."""
    message: End | ErrorMessage = await stream.hear(End | ErrorMessage)
    if isinstance(message, ErrorMessage):
        raise message.error()
