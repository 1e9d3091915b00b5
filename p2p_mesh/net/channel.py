"""A stream of a Muxer: what it holds, its credit, and who waits for it (muxer.py has the rules)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import ConnectionClosedError, IOException
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    FLAG_FIN,
    FLAG_RST,
    HEADER_SIZE,
    TYPE_DATA,
    TYPE_WINDOW_UPDATE,
    YamuxStream,
)

if TYPE_CHECKING:
    from p2p_mesh.net.muxer import Muxer

WINDOW = 4 << 20
"""Bytes that a peer may send on a stream before they are read."""

GRAIN = 64 << 10
"""Bytes that are read before credit for them is given back: each small read would otherwise send
a frame.
"""

WINDOW_PATIENCE = 5.0
"""Seconds that a sender waits for a reader that gives no credit."""

_MOST_DATA = (64 << 10) - HEADER_SIZE


class Violation(IOException):  # type: ignore[misc]
    """The peer does not keep to Yamux."""


class Channel(YamuxStream):  # type: ignore[misc]
    """A stream of a Muxer."""

    conn: Muxer

    def __init__(self, stream_id: int, conn: Muxer, is_initiator: bool) -> None:
        super().__init__(stream_id, conn, is_initiator)
        self.closed = False
        self.widened = trio.Event()
        self._is_cut = False
        self._sink: Callable[[bytes], None] | None = None
        self._failure: Exception | None = None
        self._left = bytearray()
        self._unreturned = 0
        self._growth = WINDOW - DEFAULT_WINDOW_SIZE

    async def read(self, n: int | None = -1) -> bytes:
        """What has come; waits for some. A number of bytes is only asked for in negotiations."""
        if n is not None and n >= 0:
            data: bytes = await super().read(n)
            return data
        while not (data := self._held()):
            await self._news()
        return data

    async def pour(self, sink: Callable[[bytes], None]) -> None:
        """Gives to `sink` what comes, within the turn in which it was read. Raises at the end, as
        `read` does, and what the sink raises.
        """
        if data := self._held():
            sink(data)
        self._sink = sink
        try:
            while self._failure is None:
                await self._news()
            raise self._failure
        finally:
            self._sink = None

    def _held(self) -> bytes:
        buffer = self._left or self.conn.stream_buffers.get(self.stream_id)
        if not buffer:
            self._check_readable(buffer)
            return b""
        data = bytes(buffer)
        buffer.clear()
        if self.closed:
            self.conn._finalize_stream_locked(self, fully_closed=True)
        self._credit(len(data))
        return data

    async def _news(self) -> None:
        self._check_readable(self.conn.stream_buffers.get(self.stream_id))
        event = self.conn.stream_events[self.stream_id] = trio.Event()
        await event.wait()

    def _check_readable(self, buffer: bytearray | None) -> None:
        if self.reset_received:
            raise MuxedStreamReset("the stream was reset")
        if buffer is None or self.recv_closed or self.conn.event_shutting_down.is_set():
            raise MuxedStreamEOF("nothing follows")

    async def write(self, data: bytes) -> None:
        """Sends all of it. Where only a part could be sent, the peer could make nothing of what
        came after that, so nothing more is sent.
        """
        rest = memoryview(data)
        try:
            while rest:
                await self.conn.wait_room()
                self._check_writable()
                if self.send_window:
                    rest = rest[self._put(rest) :]
                else:
                    await self._wait_window()
        except BaseException:
            self._is_cut = self._is_cut or len(rest) < len(data)
            raise

    def write_nowait(self, data: bytes) -> bool:
        """Sends all of it if that needs no waiting, and else nothing."""
        self._check_writable()
        if self.send_window < len(data) or not self.conn.has_room(len(data)):
            return False
        rest = memoryview(data)
        while rest:
            rest = rest[self._put(rest) :]
        return True

    def _put(self, data: memoryview) -> int:
        """Sends as much as one frame and the window hold."""
        size: int = min(len(data), self.send_window, _MOST_DATA)
        self.send_window -= size
        self.conn.post(TYPE_DATA, 0, self.stream_id, size, data[:size])
        return size

    def _check_writable(self) -> None:
        if self.send_closed or self.closed:
            raise MuxedStreamError("the stream is closed")
        if self._is_cut:
            raise MuxedStreamError("a part of a message was sent, and not the rest")

    async def _wait_window(self) -> None:
        self.widened = trio.Event()
        with trio.move_on_after(WINDOW_PATIENCE) as scope:
            await self.widened.wait()
        if scope.cancelled_caught:
            raise MuxedStreamError(f"the reader gave no credit for {WINDOW_PATIENCE:g} s")

    async def close(self) -> None:
        """This side is done with it: what still comes is dropped."""
        self._discard()
        try:
            await super().close()
        finally:
            if not self.closed:
                self.conn.part_from(self)

    async def reset(self) -> None:
        """Ends both halves at once. What came and was not read is dropped: libp2p would keep it for
        a minute.
        """
        self._discard()
        try:
            if not self.closed:
                with suppress(ConnectionClosedError):
                    self.conn.post(TYPE_WINDOW_UPDATE, FLAG_RST, self.stream_id, 0)
        finally:
            self.closed = self.send_closed = self.recv_closed = self.reset_received = True
            self.wake()
            self.conn._finalize_stream_locked(self, fully_closed=True)

    def _discard(self) -> None:
        self._sink = _ignore
        self._left.clear()
        if buffer := self.conn.stream_buffers.get(self.stream_id):
            buffer.clear()

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:
        """What libp2p calls after a read."""
        self._credit(bytes_read)

    def _credit(self, size: int) -> None:
        """Gives credit back by the GRAIN; the window grows to its full size at the first."""
        self._unreturned += size
        if self._unreturned < GRAIN or self.recv_closed or self.conn.event_shutting_down.is_set():
            return
        credit, self._unreturned = self._unreturned + self._growth, 0
        self._growth = 0
        self.recv_window += credit
        self.conn.post(TYPE_WINDOW_UPDATE, 0, self.stream_id, credit)

    def take(self, kind: int, flags: int, size: int, body: bytes) -> None:
        """A frame for this stream came."""
        if kind == TYPE_DATA:
            if size > self.recv_window:
                raise Violation("more data than the window")
            self.recv_window -= size
            self._deliver(body)
        elif size:
            self.send_window += size
            self.widened.set()
        if flags & FLAG_FIN:
            self.recv_closed = True
            self.closed = self.closed or self.send_closed
        if flags & FLAG_RST:
            # What came before it, perhaps in the same read, can still be taken.
            self.closed = self.recv_closed = self.reset_received = True
        if self._sink is None or flags:
            self.wake()
        if self.closed:
            self.conn._finalize_stream_locked(self, fully_closed=True)

    def _deliver(self, body: bytes) -> None:
        if self._sink is None:
            self.conn.stream_buffers[self.stream_id] += body
            return
        try:
            self._sink(body)
        except Exception as error:  # noqa: BLE001 - of whoever pours, and raised there
            self._failure, self._sink = error, None
        else:
            self._credit(len(body))

    def part(self) -> None:
        """The connection ended. What came before that can still be taken."""
        self.closed = True
        self._left += self.conn.stream_buffers.get(self.stream_id, b"")
        self.widened.set()

    def wake(self) -> None:
        """Lets those that wait for something of this stream look again."""
        if self.stream_id in self.conn.stream_events:
            self.conn.stream_events[self.stream_id].set()
        if self.closed:
            self.widened.set()


def _ignore(data: bytes) -> None: ...
