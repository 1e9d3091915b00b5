"""py-libp2p's Yamux, with paths of its own for what is read and written.

Theory of operation:

1. trio runs one task at a time, so what awaits nothing needs no lock. Frames are made and taken
   here without an await; libp2p takes up to six locks for each, and each costs a turn of the loop.
2. Who sends leaves whole frames in a queue. One task seals all that came within a turn, in that
   order, and writes it at once. So no frame is cut by the cancellation of who sent it, and no
   nonce is lost. Who waits for room, waits before any of his frame is in the queue. A frame that
   comes alone (bursts.py) is sealed and written without a turn of that task; what the socket did
   not take of it, the task writes before anything else.
3. One task reads, and waits for nobody: else two peers could wait for one another. What it has to
   answer goes into the queue too; a peer that asks without reading overflows it, and is cut off.
4. A peer that sends more than it was given credit for is cut off, and one that has too many
   streams; so is one that takes nothing of a write for STALLED seconds. Other connections are
   never waited for.
5. What comes on a stream that this side has closed is dropped, and where the peer does not end it
   too within LINGER seconds, it is reset.

The rest (opening, closing, books of streams) is libp2p's. It holds `streams_lock` across no await
but that of its farewell.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_ACK,
    FLAG_RST,
    FLAG_SYN,
    TYPE_DATA,
    TYPE_GO_AWAY,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    Yamux,
    YamuxStream,
)

from p2p_mesh.core.bursts import Bursts
from p2p_mesh.net.channel import WINDOW, Channel, Violation

ROOM = 256 << 10
"""Bytes that wait for the socket before senders have to wait,"""

OVERFULL = 1 << 20
"""and before a peer that makes us answer, and reads no answers, is cut off."""

FAREWELL = 0.3
"""Seconds that a connection that is closed has for what waits, and for saying so."""

STALLED = 30.0
"""Seconds that a peer has to take what one write holds."""

LINGER = 5.0
"""Seconds that a peer has to end its half of a stream that this side is done with."""

MAX_STREAMS = 1024
"""Streams of a connection, also those that nobody here reads any more."""

_CHUNK = 64 << 10
_MOST_NEW = 256  # streams that wait to be accepted
_HEAD = struct.Struct("!BBHII")


class Muxer(Yamux):  # type: ignore[misc]
    """A connection and its streams."""

    def __init__(self, secured_conn: Any, *given: Any, **more: Any) -> None:
        super().__init__(secured_conn, *given, **more)
        channel = trio.open_memory_channel[YamuxStream](_MOST_NEW)
        self.new_stream_send_channel, self.new_stream_receive_channel = channel
        self._noise = secured_conn.conn
        self._wire = _Wire(self._noise.read_writer.read_write_closer)
        self._queue = bytearray()
        self._rest = b""
        self._bursts = Bursts()
        self._filled = trio.Event()
        self._taken = trio.Event()
        self._parting: deque[tuple[float, int]] = deque()
        self._parted = trio.Event()

    async def _measure_rtt_loop(self) -> None:
        """Nothing here needs the round trip: the window is not tuned by it."""

    async def open_stream(self) -> YamuxStream:
        """As libp2p's, but for the class of the stream."""
        await self.wait_room()
        await self.stream_backlog_semaphore.acquire()
        if self.event_shutting_down.is_set():
            self.stream_backlog_semaphore.release()
            raise MuxedStreamError("the connection is closing")
        stream = self._add(Channel(self.next_stream_id, self, True))
        stream._owns_backlog_slot = True
        self.next_stream_id += 2
        self.post(TYPE_WINDOW_UPDATE, FLAG_SYN, stream.stream_id, 0)
        return stream

    def _add(self, stream: Channel) -> Channel:
        self.streams[stream.stream_id] = stream
        self.stream_buffers[stream.stream_id] = bytearray()
        self.stream_events[stream.stream_id] = trio.Event()
        return stream

    def part_from(self, stream: Channel) -> None:
        """This side is done with a stream, and the peer may not be."""
        self._parting.append((trio.current_time() + LINGER, stream.stream_id))
        self._parted.set()

    async def _end_parted(self) -> None:
        while True:
            while self._parting:
                due, stream_id = self._parting.popleft()
                await trio.sleep_until(due)
                if stream := self.streams.get(stream_id):
                    await stream.reset()
            self._parted = trio.Event()
            await self._parted.wait()

    # What is written.

    def has_room(self, size: int) -> bool:
        return len(self._queue) + len(self._rest) + size <= ROOM

    async def wait_room(self) -> None:
        while not self.has_room(0):
            await self._taken.wait()

    def post(
        self, kind: int, flags: int, stream_id: int, size: int, body: bytes | memoryview = b""
    ) -> None:
        """Queues a frame, whatever waits already."""
        if self.event_shutting_down.is_set():
            raise ConnectionClosedError("the connection is closing", transport="yamux")
        if len(self._queue) > OVERFULL:
            raise Violation("the peer reads nothing")
        is_free = not self._queue and not self._rest
        self._queue += _HEAD.pack(0, kind, flags, stream_id, size)
        self._queue += body
        if self._bursts.is_alone(trio.current_time()) and is_free:
            self._flush()
        if self._queue or self._rest:
            self._filled.set()

    def _flush(self) -> None:
        """Seals what waits, and gives the socket what it takes at once."""
        sealed = self._sealed(bytes(self._queue))
        self._queue.clear()
        self._rest = sealed[self._wire.put(sealed) :]

    async def _write_frame(self, data: bytes) -> None:
        """What libp2p's own code sends: the ends of streams, and farewells. They hold no data, so
        they need not wait, and a peer that takes nothing holds up nobody who is done with it.
        """
        _, kind, flags, stream_id, size = _HEAD.unpack(data)
        self.post(kind, flags, stream_id, size)
        if kind == TYPE_GO_AWAY:
            with trio.move_on_after(FAREWELL):
                while self._queue or self._rest:
                    await self._taken.wait()

    async def _write_out(self) -> None:
        while True:
            if not self._queue and not self._rest:
                self._filled = trio.Event()
                await self._filled.wait()
            if not self._rest:
                self._flush()
            if self._rest:
                await self._wire.write(self._rest)
                self._rest = b""
            self._taken.set()
            self._taken = trio.Event()

    def _sealed(self, plain: bytes) -> bytes:
        messages: list[bytes] = []
        for start in range(0, len(plain), MAX_PLAINTEXT_LENGTH):
            sealed = self._noise.encrypt(plain[start : start + MAX_PLAINTEXT_LENGTH])
            messages += len(sealed).to_bytes(2, "big"), sealed
        return b"".join(messages)

    # What is read.

    async def handle_incoming(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_over, self._write_out, nursery.cancel_scope)
            nursery.start_soon(self._until_over, self._read_in, nursery.cancel_scope)
            nursery.start_soon(self._until_over, self._end_parted, nursery.cancel_scope)
        await self._cleanup_on_error()

    async def _until_over(
        self, work: Callable[[], Awaitable[None]], all_of_them: trio.CancelScope
    ) -> None:
        # Whatever a peer or a socket does ends this connection, and nothing else.
        with suppress(Exception):
            await work()
        all_of_them.cancel()

    async def _read_in(self) -> None:
        sealed, plain = bytearray(), bytearray(self.secured_conn._drain(None))
        while True:
            self._take_frames(plain)
            data = await self._wire.read()
            if not data:
                return
            sealed += data
            self._unseal(sealed, plain)

    def _unseal(self, sealed: bytearray, plain: bytearray) -> None:
        """Moves the messages that are whole."""
        start = 0
        while len(sealed) >= start + 2:
            end = start + 2 + int.from_bytes(sealed[start : start + 2], "big")
            if len(sealed) < end:
                break
            plain += self._noise.decrypt(bytes(sealed[start + 2 : end]))
            start = end
        del sealed[:start]

    def _take_frames(self, plain: bytearray) -> None:
        """Takes the frames that are whole."""
        start = 0
        while len(plain) >= start + _HEAD.size:
            version, kind, flags, stream_id, size = _HEAD.unpack_from(plain, start)
            body = start + _HEAD.size
            end = body + (size if kind == TYPE_DATA else 0)
            if version or kind > TYPE_GO_AWAY or end - body > WINDOW:
                raise Violation("no frame of Yamux")
            if len(plain) < end:
                break
            self._take(kind, flags, stream_id, size, bytes(plain[body:end]))
            start = end
        del plain[:start]

    def _take(self, kind: int, flags: int, stream_id: int, size: int, body: bytes) -> None:
        if kind == TYPE_PING:
            if flags & FLAG_SYN:
                self.post(TYPE_PING, FLAG_ACK, 0, size)
        elif kind == TYPE_GO_AWAY:
            raise ConnectionClosedError("the peer says farewell", transport="yamux")
        elif flags & FLAG_SYN:
            self._accept(kind, flags, stream_id, size, body)
        elif stream := self.streams.get(stream_id):
            stream.take(kind, flags, size, body)

    def _accept(self, kind: int, flags: int, stream_id: int, size: int, body: bytes) -> None:
        if stream_id in self.streams or stream_id % 2 == self.next_stream_id % 2 or not stream_id:
            raise Violation("a stream that cannot be new")
        if len(self.streams) >= MAX_STREAMS:
            raise Violation("too many streams")
        stream = Channel(stream_id, self, False)
        try:
            self.new_stream_send_channel.send_nowait(stream)
        except trio.WouldBlock:
            self.post(TYPE_WINDOW_UPDATE, FLAG_RST, stream_id, 0)
            return
        self._add(stream).take(kind, flags, size, body)
        if not flags & FLAG_RST:
            self.post(TYPE_WINDOW_UPDATE, FLAG_ACK, stream_id, 0)

    async def _cleanup_on_error(self) -> None:
        self._release()
        await super()._cleanup_on_error()

    async def close(self, error_code: int = 0) -> None:
        try:
            await super().close(error_code)
        finally:
            self._release()

    def _release(self) -> None:
        """Nobody waits for what no longer comes."""
        self.event_shutting_down.set()
        self._queue.clear()
        self._rest = b""
        self._taken.set()
        for stream in self.streams.values():
            stream.part()


class _Wire:
    """The connection below Noise. A socket is read and written without trio's and libp2p's turns
    of the loop; whatever else it is, by its own means.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        is_tcp = isinstance(raw.stream, TrioTCPStream)
        self._socket = raw.stream.stream.socket if is_tcp else None

    async def read(self) -> bytes:
        """What has come; nothing where that was all."""
        if self._socket is None:
            data: bytes = await self._raw.read(_CHUNK)
            return data
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return os.read(self._socket.fileno(), _CHUNK)
            except BlockingIOError:
                pass

    def put(self, data: bytes) -> int:
        """How much of it the socket takes at once. Where it is broken, `write` will say so."""
        if self._socket is None:
            return 0
        try:
            return os.write(self._socket.fileno(), data)
        except OSError:
            return 0

    async def write(self, data: bytes) -> None:
        with trio.fail_after(STALLED):
            await self._raw.write(data)
