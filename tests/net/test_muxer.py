"""Two Muxers over a pipe in memory, under a cipher that only checks the order."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import libp2p.stream_muxer.muxer_multistream as muxer_multistream
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_RST,
    FLAG_SYN,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    Yamux,
)

from p2p_mesh.net import muxer as muxing
from p2p_mesh.net import patches
from p2p_mesh.net.channel import WINDOW, Channel
from p2p_mesh.net.muxer import Muxer
from p2p_mesh.testing.members import Mesh, opened, text_of, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock
HEAD = struct.Struct("!BBHII")


class Pipe:
    """One end of a connection; it takes nothing while it is `shut`."""

    stream = None

    def __init__(self, send: Any, receive: Any) -> None:
        self._send, self._receive = send, receive
        self.written: list[bytes] = []
        self._open = trio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open = trio.Event()

    def unshut(self) -> None:
        self._open.set()

    async def write(self, data: bytes) -> None:
        await self._open.wait()
        self.written.append(data)
        await self._send.send(data)

    async def read(self, n: int | None = None) -> bytes:
        try:
            return bytes(await self._receive.receive())
        except trio.EndOfChannel:
            return b""

    async def close(self) -> None:
        self._send.close()
        self._receive.close()


class Ordered:
    """Numbers what it seals, and opens it in that order only, as Noise does."""

    def __init__(self, raw: Any) -> None:
        self.read_writer = self
        self.read_write_closer = raw
        self.sent = self.got = 0

    def encrypt(self, data: bytes) -> bytes:
        self.sent += 1
        return self.sent.to_bytes(8, "big") + data

    def decrypt(self, data: bytes) -> bytes:
        self.got += 1
        if int.from_bytes(data[:8], "big") != self.got:
            raise ValueError("out of order")
        return data[8:]


class Secured:
    def __init__(self, raw: Any, is_initiator: bool) -> None:
        self.raw = raw
        self.conn = Ordered(raw)
        self.is_initiator = is_initiator

    def _drain(self, n: int | None) -> bytes:
        return b""

    async def close(self) -> None:
        await self.raw.close()


def pipes() -> tuple[Pipe, Pipe]:
    forth = trio.open_memory_channel[bytes](1000)
    back = trio.open_memory_channel[bytes](1000)
    return Pipe(forth[0], back[1]), Pipe(back[0], forth[1])


@asynccontextmanager
async def running(*muxers: Muxer) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for one in muxers:
            nursery.start_soon(one.start)
        for one in muxers:
            await one.event_started.wait()
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Muxer, Muxer]]:
    here, there = (
        Muxer(Secured(pipe, first), None)
        for pipe, first in zip(pipes(), (True, False), strict=True)
    )
    async with running(here, there):
        yield here, there


@asynccontextmanager
async def alone() -> AsyncIterator[tuple[Muxer, Any]]:
    """A Muxer that accepts, and a function that sends it frames."""
    here, there = pipes()
    mux, cipher = Muxer(Secured(here, False), None), Ordered(there)

    async def send(*frames: bytes) -> None:
        for start in range(0, len(data := b"".join(frames)), 60_000):
            sealed = cipher.encrypt(data[start : start + 60_000])
            await there.write(len(sealed).to_bytes(2, "big") + sealed)

    async with running(mux):
        yield mux, send


async def linked(here: Muxer, there: Muxer) -> tuple[Channel, Channel]:
    """A stream, and its other end."""
    ours: Any = await here.open_stream()
    theirs: Any = await there.accept_stream()
    return ours, theirs


def pipe_of(mux: Muxer) -> Pipe:
    pipe: Pipe = mux.secured_conn.raw
    return pipe


async def read_all(stream: Channel, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.read()
    return data


async def test_data_goes_both_ways(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, theirs = await linked(here, there)
        await ours.write(b"hello")
        assert await theirs.read() == b"hello"
        await theirs.write(b"hi")
        assert await ours.read() == b"hi"


async def test_frames_of_one_turn_leave_in_one_write(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        streams = [await linked(here, there) for _ in range(8)]
        for _ in range(3):
            await trio.sleep(0.02)
            pipe_of(here).written.clear()
            for ours, _ in streams:
                assert ours.write_nowait(b"token")
            for _, theirs in streams:
                assert await theirs.read() == b"token"
            count = len(pipe_of(here).written)
        assert count == 1


async def test_frame_that_comes_alone_is_on_its_way_at_once() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    near = await trio.open_tcp_stream("127.0.0.1", port)
    async with near, await listeners[0].accept() as far, listeners[0]:
        mux = Muxer(Secured(RawConnection(TrioTCPStream(near), True), True), None)
        stream = mux._add(Channel(1, mux, True))
        assert stream.write_nowait(b"first")  # what came before it is not known
        mux._flush()
        await trio.sleep(0.01)
        assert stream.write_nowait(b"alone")
        assert not mux._queue
        assert not mux._rest
        assert stream.write_nowait(b"together")
        assert mux._queue
        with trio.fail_after(1):
            data = b""
            while b"alone" not in data:
                data += await far.receive_some()
        assert b"together" not in data


async def test_sender_that_is_cancelled_leaves_the_connection_whole(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, _ = await linked(here, there)
        others, their_others = await linked(here, there)
        pipe_of(here).shut()
        with trio.move_on_after(1) as scope:
            await ours.write(bytes(1 << 20))
        assert scope.cancelled_caught
        with pytest.raises(MuxedStreamError, match="a part of a message"):
            ours.write_nowait(b"x" * 1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others.write, b"y" * 100_000)
            await trio.sleep(1)
            pipe_of(here).unshut()
            assert await read_all(their_others, 100_000) == b"y" * 100_000
        assert not here.is_closed


async def test_ends_of_streams_wait_for_nobody(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, _ = await linked(here, there)
        others, _ = await linked(here, there)
        pipe_of(here).shut()
        with trio.move_on_after(1):
            await ours.write(bytes(1 << 20))
        start = trio.current_time()
        await ours.reset()
        await others.close()
        assert trio.current_time() == start


async def test_closing_says_what_waits_but_not_for_long(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, _ = await linked(here, there)
        pipe_of(here).shut()
        ours.write_nowait(b"x")
        start = trio.current_time()
        await here.close()
        assert trio.current_time() - start < muxing.FAREWELL + 0.2


async def test_last_words_are_read(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, theirs = await linked(here, there)
        ours.write_nowait(b"last words")
        await here.close()
        await there.event_closed.wait()
        assert await theirs.read() == b"last words"
        with pytest.raises(MuxedStreamError):
            await theirs.read()


async def test_peer_that_takes_nothing_is_cut_off(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, _ = await linked(here, there)
        pipe_of(here).shut()
        ours.write_nowait(b"x")
        await trio.sleep(muxing.STALLED + 1)
        assert here.is_closed


async def test_end_of_the_connection_wakes_who_waits(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, _ = await linked(here, there)
        failed: list[str] = []

        async def fails(name: str, work: Any) -> None:
            with pytest.raises((MuxedStreamError, ConnectionClosedError)):
                await work()
            failed.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, "read", ours.read)
            nursery.start_soon(fails, "window", partial(ours.write, bytes(8 << 20)))
            await trio.sleep(1)
            others: Any = await here.open_stream()
            pipe_of(here).shut()
            nursery.start_soon(fails, "room", partial(others.write, bytes(1 << 20)))
            await trio.sleep(1)
            await there.close()
        assert sorted(failed) == ["read", "room", "window"]
        with pytest.raises(MuxedStreamError):
            await here.open_stream()


async def test_pings_are_answered(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        await send(HEAD.pack(0, TYPE_PING, FLAG_SYN, 0, 7))
        await until(lambda: pipe_of(mux).written)
        assert pipe_of(mux).written[0][10:] == HEAD.pack(0, TYPE_PING, 2, 0, 7)


async def test_peer_that_asks_and_does_not_read_is_cut_off(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        pipe_of(mux).shut()
        with pytest.raises(trio.BrokenResourceError):
            await send(HEAD.pack(0, TYPE_PING, FLAG_SYN, 0, 7) * 200_000)
        assert len(mux._queue) + len(mux._rest) <= 2 * muxing.OVERFULL
        assert mux.is_closed


@pytest.mark.parametrize(
    "frame",
    [
        HEAD.pack(1, TYPE_PING, FLAG_SYN, 0, 0),
        HEAD.pack(0, 4, 0, 0, 0),
        HEAD.pack(0, TYPE_DATA, 0, 1, WINDOW + 1),
        HEAD.pack(0, TYPE_DATA, FLAG_SYN, 0, 0),
        HEAD.pack(0, TYPE_DATA, FLAG_SYN, 2, 0),  # this side's to open
        HEAD.pack(0, TYPE_DATA, FLAG_SYN, 1, 0) * 2,
        HEAD.pack(0, TYPE_DATA, FLAG_SYN, 1, (256 << 10) + 1) + bytes((256 << 10) + 1),
        HEAD.pack(0, 3, 0, 0, 0),
    ],
    ids=["version", "kind", "size", "nought", "parity", "twice", "window", "farewell"],
)
async def test_what_is_no_yamux_ends_the_connection(frame: bytes, autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        await send(frame)
        await trio.sleep(1)
        assert mux.is_closed


async def test_data_for_a_stream_that_is_gone_is_dropped(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        await send(HEAD.pack(0, TYPE_DATA, 0, 1, 4) + b"late")
        await send(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 3, 2) + b"hi")
        stream: Any = await mux.accept_stream()
        assert await stream.read() == b"hi"


async def test_streams_that_nobody_accepts_are_reset(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        await send(*(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 2 * n + 1, 0) for n in range(300)))
        await until(lambda: pipe_of(mux).written)
        await trio.sleep(1)
        assert len(mux.streams) == 256
        assert not mux.is_closed


async def test_streams_that_nobody_accepts_keep_nothing(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        for n in range(300):
            await send(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 2 * n + 1, 1000) + bytes(1000))
        await trio.sleep(1)
        assert len(mux.streams) == len(mux.stream_buffers) == len(mux.stream_events) == 256
        while mux.streams:
            stream: Any = await mux.accept_stream()
            await stream.reset()
        assert not mux.stream_buffers


async def test_stream_that_the_peer_does_not_end_is_reset(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        await send(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 1, 5) + b"early")
        stream: Any = await mux.accept_stream()
        await stream.close()
        for _ in range(20):
            await send(HEAD.pack(0, TYPE_DATA, 0, 1, 60_000) + bytes(60_000))
        await trio.sleep(muxing.LINGER - 1)
        assert mux.stream_buffers == {1: b""}
        await trio.sleep(2)
        assert not mux.streams
        assert pipe_of(mux).written[-1][10:] == HEAD.pack(0, TYPE_WINDOW_UPDATE, FLAG_RST, 1, 0)
        assert not mux.is_closed


async def test_stream_that_both_end_is_not_reset(autojump_clock: Clock) -> None:
    async with pair() as (here, there):
        ours, theirs = await linked(here, there)
        await ours.write(b"last words")
        await ours.close()
        await trio.sleep(1)
        assert await theirs.read() == b"last words"
        await theirs.close()
        await trio.sleep(muxing.LINGER + 1)
        assert not here.streams
        assert not there.streams
        assert not theirs.reset_received


async def test_peer_with_too_many_streams_is_cut_off(autojump_clock: Clock) -> None:
    async with alone() as (mux, send):
        for n in range(muxing.MAX_STREAMS):
            await send(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 2 * n + 1, 0))
            await mux.accept_stream()
        assert not mux.is_closed
        await send(HEAD.pack(0, TYPE_DATA, FLAG_SYN, 2 * muxing.MAX_STREAMS + 1, 0))
        await trio.sleep(1)
        assert mux.is_closed


@given(st.lists(st.integers(1, 400), max_size=40))
def test_where_the_wire_cuts_changes_nothing(cuts: list[int]) -> None:
    async def read() -> bytes:
        cipher, (near, _) = Ordered(None), pipes()
        mux = Muxer(Secured(near, False), None)
        frames = [HEAD.pack(0, TYPE_DATA, FLAG_SYN, 1, 0)]
        frames += [HEAD.pack(0, TYPE_DATA, 0, 1, n) + bytes([n]) * n for n in (1, 0, 200, 90)]
        wire = b"".join(
            len(part := cipher.encrypt(piece)).to_bytes(2, "big") + part
            for piece in cut(b"".join(frames), cuts)
        )
        sealed, plain = bytearray(), bytearray()
        for piece in cut(wire, cuts[::-1]):
            sealed += piece
            mux._unseal(sealed, plain)
            mux._take_frames(plain)
        assert not sealed
        assert not plain
        return bytes(mux.stream_buffers[1])

    assert trio.run(read) == b"\x01" + b"\xc8" * 200 + b"\x5a" * 90


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*(piece for piece in pieces if piece), data]


@pytest.mark.parametrize("plain_side", [True, False], ids=["dialer", "listener"])
async def test_speaks_with_yamux_of_libp2p(
    plain_side: bool, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches.apply()

    def choose(conn: Any, peer: Any, *, is_initiator: bool, on_close: Any) -> Any:
        kind = Yamux if is_initiator == plain_side else Muxer
        return kind(conn, peer, is_initiator=is_initiator, on_close=on_close)

    monkeypatch.setattr(muxer_multistream, "Yamux", choose)
    sent: list[int] = []

    async def echo(stream: Any) -> None:
        await stream.write(await stream.read())
        total = 0
        while total < 3 << 20:
            total += len(await stream.read())
        sent.append(total)
        await stream.close()

    wire, mesh = MemoryNetwork(), Mesh()
    near, far = mesh.node(), mesh.node()
    # Members' own streams need a Channel; what libp2p itself speaks does not.
    async with opened(far, transport=wire.transport()), opened(near, transport=wire.transport()):
        far.net._host.handle("/echo", echo)
        await near.net._host.dial(far.peer_id, far.net.addresses())
        stream = await near.net._host.open(far.peer_id, "/echo")
        await stream.write(b"hello")
        assert await stream.read() == b"hello"
        await stream.write(bytes(3 << 20))
        await until(lambda: sent == [3 << 20], seconds=30)


async def test_members_speak_over_it(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    near, far = mesh.node(), mesh.node()
    async with (
        opened(far, transport=wire.transport()),
        opened(near, transport=wire.transport(), seeds=far.seeds()),
    ):
        await until(lambda: near.came)
        (conn,) = near.net._host.libp2p.get_network().get_connections()
        assert isinstance(conn.muxed_conn, Muxer)
        assert await text_of(near, far.peer_id) == "hello"
