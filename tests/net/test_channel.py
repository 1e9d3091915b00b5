"""One stream of a Muxer: its credit, its window, and who takes what comes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import FLAG_FIN, FLAG_RST, TYPE_DATA, TYPE_WINDOW_UPDATE

from p2p_mesh.net import channel as channels
from p2p_mesh.net.channel import WINDOW, Channel, Violation
from p2p_mesh.net.muxer import Muxer

Clock = trio.testing.MockClock
INITIAL = 256 << 10


class Books:
    """The part of a connection that a stream needs; it keeps what is posted."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.posted: list[tuple[int, int, int, int, bytes]] = []
        self.stream_buffers = {1: bytearray()}
        self.stream_events = {1: trio.Event()}
        self.event_shutting_down = trio.Event()
        self.finished: list[int] = []
        self.parted: list[Channel] = []

    def post(self, kind: int, flags: int, stream_id: int, size: int, body: Any = b"") -> None:
        self.posted.append((kind, flags, stream_id, size, bytes(body)))

    def has_room(self, size: int) -> bool:
        return size <= self.room

    async def wait_room(self) -> None:
        await trio.lowlevel.checkpoint()

    def _finalize_stream_locked(self, stream: Channel, *, fully_closed: bool) -> None:
        self.finished.append(stream.stream_id)

    def part_from(self, stream: Channel) -> None:
        self.parted.append(stream)


def make(**more: Any) -> tuple[Channel, Books]:
    books: Any = Books(**more)
    return Channel(1, books, True), books


async def test_credit_is_returned_in_batches() -> None:
    stream, books = make()
    for _ in range(63):
        await stream._auto_tune_and_send_window_update(bytes_read=1024)
    assert books.posted == []
    await stream._auto_tune_and_send_window_update(bytes_read=1024)
    ((kind, _, _, increment, _),) = books.posted
    # What was read, and what the window grew by.
    assert (kind, increment) == (TYPE_WINDOW_UPDATE, (64 << 10) + (4 << 20) - (256 << 10))


async def test_credit_of_a_frame_is_one_update_on_the_wire() -> None:
    class Wire:
        stream = None
        is_initiator = True
        conn: Any = property(lambda self: self)
        read_writer: Any = property(lambda self: self)
        read_write_closer: Any = property(lambda self: self)

        def __init__(self) -> None:
            self.sealed: list[bytes] = []

        def encrypt(self, data: bytes) -> bytes:
            self.sealed.append(data)
            return data

    wire = Wire()
    mux = Muxer(wire, None)
    mux._add(Channel(1, mux, True))._credit(64 << 10)
    mux._flush()
    (update,) = wire.sealed
    assert struct.unpack(">BBHLL", update) == (0, 1, 0, 1, (64 << 10) + WINDOW - INITIAL)


async def test_window_never_exceeds_its_full_size() -> None:
    stream, _ = make()
    for _ in range(1000):
        size = min(stream.recv_window, 100_000)
        stream.take(TYPE_DATA, 0, size, bytes(size))
        stream._held()
        assert stream.recv_window + stream._unreturned <= WINDOW
    assert stream.recv_window > WINDOW // 2


async def test_more_than_the_window_is_a_violation() -> None:
    stream, _ = make()
    stream.take(TYPE_DATA, 0, INITIAL, bytes(INITIAL))
    with pytest.raises(Violation):
        stream.take(TYPE_DATA, 0, 1, b"x")


async def test_data_is_cut_into_frames() -> None:
    stream, books = make()
    data = bytes(range(256)) * 800
    assert stream.write_nowait(data)
    assert b"".join(body for *_, body in books.posted) == data
    assert max(size for _, _, _, size, _ in books.posted) == (64 << 10) - 12
    assert stream.send_window == INITIAL - len(data)


@pytest.mark.parametrize(("size", "room"), [(INITIAL + 1, 1 << 30), (100, 99)])
async def test_what_must_wait_is_not_begun(size: int, room: int) -> None:
    stream, books = make(room=room)
    assert not stream.write_nowait(bytes(size))
    assert books.posted == []


async def test_writer_waits_for_credit(autojump_clock: Clock) -> None:
    stream, books = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, bytes(INITIAL + 10))
        await trio.sleep(4)
        assert sum(size for _, _, _, size, _ in books.posted) == INITIAL
        stream.take(TYPE_WINDOW_UPDATE, 0, 10, b"")
    assert sum(size for _, _, _, size, _ in books.posted) == INITIAL + 10


async def test_reader_that_gives_no_credit_ends_the_write(autojump_clock: Clock) -> None:
    stream, _ = make()
    start = trio.current_time()
    with pytest.raises(MuxedStreamError, match="no credit"):
        await stream.write(bytes(INITIAL + 1))
    assert trio.current_time() - start == channels.WINDOW_PATIENCE


async def test_reset_wakes_a_waiting_writer(autojump_clock: Clock) -> None:
    stream, _ = make()

    async def write() -> None:
        with pytest.raises(MuxedStreamError, match="closed"):
            await stream.write(bytes(INITIAL + 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(1)
        stream.take(TYPE_WINDOW_UPDATE, FLAG_RST, 0, b"")
        start = trio.current_time()
    assert trio.current_time() == start


@pytest.mark.parametrize(
    ("flag", "error"), [(FLAG_FIN, MuxedStreamEOF), (FLAG_RST, MuxedStreamReset)]
)
async def test_what_came_before_the_end_is_read(flag: int, error: type[Exception]) -> None:
    stream, _ = make()
    stream.take(TYPE_DATA, flag, 4, b"last")
    assert await stream.read() == b"last"
    with pytest.raises(error):
        await stream.read()


async def poured(stream: Channel, sink: Callable[[bytes], None], error: type[Exception]) -> None:
    with pytest.raises(error):
        await stream.pour(sink)


async def test_poured_data_comes_in_the_turn_it_was_read(autojump_clock: Clock) -> None:
    stream, _ = make()
    got: list[bytes] = []
    stream.take(TYPE_DATA, 0, 5, b"early")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poured, stream, got.append, MuxedStreamEOF)
        await trio.sleep(1)
        assert got == [b"early"]
        stream.take(TYPE_DATA, 0, 4, b"late")
        assert got == [b"early", b"late"]
        stream.take(TYPE_DATA, FLAG_FIN, 3, b"end")
        assert got == [b"early", b"late", b"end"]


async def test_poured_data_gives_credit_back(autojump_clock: Clock) -> None:
    stream, books = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.pour, lambda data: None)
        await trio.sleep(1)
        for _ in range(200):
            stream.take(TYPE_DATA, 0, 60_000, bytes(60_000))
        assert {kind for kind, *_ in books.posted} == {TYPE_WINDOW_UPDATE}
        nursery.cancel_scope.cancel()


async def test_error_of_a_sink_ends_its_stream_alone(autojump_clock: Clock) -> None:
    def refuse(data: bytes) -> None:
        raise KeyError(data)

    stream, _ = make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poured, stream, refuse, KeyError)
        await trio.sleep(1)
        stream.take(TYPE_DATA, 0, 3, b"bad")
        stream.take(TYPE_DATA, 0, 5, b"after")
    assert await stream.read() == b"after"


async def test_closed_stream_takes_nothing(autojump_clock: Clock) -> None:
    stream, _ = make()
    stream.send_closed = True
    with pytest.raises(MuxedStreamError):
        stream.write_nowait(b"x")
    with pytest.raises(MuxedStreamError):
        await stream.write(b"x")


async def test_message_of_which_a_part_was_sent_is_the_last(autojump_clock: Clock) -> None:
    stream, books = make()
    with trio.move_on_after(1):
        await stream.write(bytes(INITIAL + 1))
    stream.take(TYPE_WINDOW_UPDATE, 0, 1 << 20, b"")
    for _ in range(2):
        with pytest.raises(MuxedStreamError, match="a part of a message"):
            await stream.write(b"another")
    with pytest.raises(MuxedStreamError, match="a part of a message"):
        stream.write_nowait(b"another")
    assert sum(size for _, _, _, size, _ in books.posted) == INITIAL


async def test_message_of_which_nothing_was_sent_harms_nothing(autojump_clock: Clock) -> None:
    stream, _ = make()
    stream.send_window = 0
    with trio.move_on_after(1):
        await stream.write(b"late")
    stream.take(TYPE_WINDOW_UPDATE, 0, 100, b"")
    assert stream.write_nowait(b"another")


async def test_reset_drops_what_was_not_read_and_wakes_the_reader(autojump_clock: Clock) -> None:
    stream, books = make()

    async def read() -> None:
        with pytest.raises(MuxedStreamReset):
            await stream.read()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        await stream.reset()
    stream.take(TYPE_DATA, 0, 4, b"late")
    assert books.stream_buffers == {1: b""}
    assert books.posted == [(TYPE_WINDOW_UPDATE, FLAG_RST, 1, 0, b"")]
    assert 1 in books.finished
