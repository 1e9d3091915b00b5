"""Moves the frames of a stage: from its worker to the next stage, and from the stage before to its
worker. It does not look into them (specs/activations/README.md).

Theory of operation:

1. The worker blocks while its socket is full. So the socket is always read: where there is no
   stream to the next stage, or it broke, what the worker says is dropped. The ring is made anew
   then, and what was in flight is void.
2. A frame from the stage before goes into the worker's socket within the turn in which it came.
   What the socket does not take waits here, up to a limit, and one task writes it.
3. A frame is never cut, whatever breaks: of what waits for the worker, the rest of a frame that was
   begun is written also where its stream was replaced meanwhile.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from meshnode_skippy.wire import MAX_BODY
from p2p_mesh.errors import MeshError, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Stream

MOST_WAITING = 256 << 20
"""Bytes that wait for the worker before the stream to it counts as broken."""

BUFFER = 256 << 10
"""Bytes that are read at once; a frame that is longer has a buffer of its own."""

_SOCKET = 8 << 20  # asked of the system, which gives what it may
_HEAD = 4


class Pump:
    """The link of one worker. `broken` is told why frames no longer reach the next stage."""

    def __init__(self, link: socket.socket, broken: Callable[[MeshError], None]) -> None:
        link.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            link.setsockopt(socket.SOL_SOCKET, option, _SOCKET)
        self._link = link
        self._broken = broken
        self._next: Stream | None = None
        self._sending = trio.CancelScope()
        self._source = object()
        self._waiting: deque[memoryview] = deque()
        self._is_begun = False
        """Of the first that waits, a part was written."""
        self._size = 0
        self._filled = trio.Event()

    def aim(self, stream: Stream | None) -> None:
        """From now on frames go there; what is on its way to the former stream is dropped."""
        self._next = stream
        self._sending.cancel()

    def inlet(self) -> Callable[[bytes], None]:
        """Takes the frames of a new stream from the stage before; those of older ones are dropped
        from now on. It raises Unavailable where the worker takes too little.
        """
        source = self._source = object()
        self._forget()

        def hear(frame: bytes) -> None:
            if self._source is source:
                self._give(frame)

        return hear

    async def run(self) -> None:
        """Until the worker has closed its end. Raises RemoteError for what is no frame."""
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed)
                # Where it has closed its end: its process is watched, and will tell why.
                with suppress(EOFError, OSError):
                    await self._drain()
                nursery.cancel_scope.cancel()

    # To the next stage

    async def _drain(self) -> None:
        view, held = memoryview(bytearray(BUFFER)), 0
        while True:
            held += await self._read(view[held:])
            start = 0
            while (end := _end(view, start, held)) <= held:
                await self._send(bytes(view[start + _HEAD : end]))
                start = end
            if end - start > BUFFER:
                await self._send(await self._long(view[start + _HEAD : held], end - start - _HEAD))
                start = held
            if start:
                view[: held - start] = view[start:held]
                held -= start

    async def _long(self, begun: memoryview, length: int) -> bytes:
        """A frame of which only the beginning has come."""
        body = bytearray(length)
        body[: len(begun)] = begun
        rest = memoryview(body)[len(begun) :]
        while rest:
            rest = rest[await self._read(rest) :]
        return bytes(body)

    async def _read(self, into: memoryview) -> int:
        while True:
            await trio.lowlevel.wait_readable(self._link)
            try:
                count = self._link.recv_into(into)
            except BlockingIOError:
                continue
            if not count:
                raise EOFError
            return count

    async def _send(self, body: bytes) -> None:
        stream = self._next
        if stream is None:
            return
        try:
            if not stream.send_nowait(body):
                self._sending = trio.CancelScope()
                with self._sending:
                    await stream.send(body)
        except MeshError as error:
            if self._next is stream:
                self._next = None
                self._broken(error)

    # From the stage before

    def _give(self, frame: bytes) -> None:
        head = len(frame).to_bytes(_HEAD, "little")
        sent = 0
        if not self._waiting:
            try:
                sent = self._link.sendmsg((head, frame))
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise Unavailable("the worker of the stage has ended") from error
        if sent < _HEAD + len(frame):
            self._keep(memoryview(head + frame)[sent:], is_begun=sent > 0)

    def _keep(self, rest: memoryview, *, is_begun: bool) -> None:
        if self._size + len(rest) > MOST_WAITING:
            raise Unavailable("the worker of the stage takes nothing")
        self._is_begun = self._is_begun or is_begun
        self._waiting.append(rest)
        self._size += len(rest)
        self._filled.set()

    def _forget(self) -> None:
        """What waits is of a stream that is over; but a frame that was begun is ended."""
        kept = [self._waiting[0]] if self._is_begun else []
        self._waiting = deque(kept)
        self._size = sum(map(len, kept))

    async def _feed(self) -> None:
        while True:
            while self._waiting:
                await trio.lowlevel.wait_writable(self._link)
                self._write()
            self._filled = trio.Event()
            await self._filled.wait()

    def _write(self) -> None:
        try:
            sent = self._link.send(self._waiting[0])
        except BlockingIOError:
            return
        except OSError:
            self._waiting.clear()
            return
        self._size -= sent
        self._is_begun = sent < len(self._waiting[0])
        if self._is_begun:
            self._waiting[0] = self._waiting[0][sent:]
        else:
            self._waiting.popleft()


def _end(view: memoryview, start: int, held: int) -> int:
    """Where the frame that starts there ends; beyond what is held if even that is unknown."""
    if held - start < _HEAD:
        return held + 1
    length = int.from_bytes(view[start : start + _HEAD], "little")
    if length > MAX_BODY:
        raise RemoteError(f"its worker sent a frame of {length} bytes; {MAX_BODY} is the limit")
    return start + _HEAD + length
