"""Frames between a worker's socket and two streams: whole, in order, and never stuck."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode_skippy import pump
from meshnode_skippy.local import pipe
from meshnode_skippy.pump import Pump
from meshnode_skippy.wire import MAX_BODY

from p2p_mesh.errors import MeshError, RemoteError, Unavailable


def framed(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(4, "little") + body for body in bodies)


@dataclass
class Bench:
    pump: Pump
    worker: trio.SocketStream
    broken: list[MeshError] = field(default_factory=list)

    async def said(self, size: int) -> bytes:
        """What reaches the worker."""
        data = b""
        while len(data) < size:
            data += await self.worker.receive_some(size - len(data))
        return data


@pytest.fixture
async def bench(nursery: trio.Nursery) -> AsyncIterator[Bench]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    broken: list[MeshError] = []
    made = Pump(ours, broken.append)
    worker = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    nursery.start_soon(made.run)
    yield Bench(made, worker, broken)
    await worker.aclose()
    ours.close()


async def test_frames_go_to_the_next_stage(bench: Bench) -> None:
    near, far = pipe()
    bench.pump.aim(near)
    bodies = [b"a", b"", bytes(1000), b"z"]
    await bench.worker.send_all(framed(*bodies))
    assert [await far.receive() for _ in bodies] == bodies


async def test_a_frame_longer_than_the_buffer_passes_whole(bench: Bench) -> None:
    near, far = pipe()
    bench.pump.aim(near)
    long = bytes(range(256)) * (4 * pump.BUFFER // 256) + b"end"
    await bench.worker.send_all(framed(b"before", long, b"after"))
    assert [await far.receive() for _ in range(3)] == [b"before", long, b"after"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 300), max_size=12), st.lists(st.integers(1, 400), min_size=1), st.data()
)
def test_however_it_is_cut_each_frame_arrives(
    sizes: list[int], cuts: list[int], data: st.DataObject
) -> None:
    buffer = data.draw(st.integers(8, 64))
    bodies = [bytes([place % 256]) * size for place, size in enumerate(sizes)]

    async def main() -> None:
        ours, theirs = socket.socketpair()
        near, far = pipe()
        made = Pump(ours, lambda error: None)
        made.aim(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            rest = framed(*bodies)
            for cut in cuts:
                theirs.sendall(rest[:cut])
                rest = rest[cut:]
                await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(rest)
            assert [await far.receive() for _ in bodies] == bodies
            nursery.cancel_scope.cancel()
        ours.close()
        theirs.close()

    before, pump.BUFFER = pump.BUFFER, buffer
    try:
        trio.run(main)
    finally:
        pump.BUFFER = before


async def test_without_a_next_stage_the_worker_never_blocks(bench: Bench) -> None:
    with trio.fail_after(5):
        await bench.worker.send_all(framed(bytes(4 << 20)))
        near, far = pipe()
        bench.pump.aim(near)
        await bench.worker.send_all(framed(b"now"))
        while (frame := await far.receive()) != b"now":
            assert len(frame) == 4 << 20


async def test_a_stream_that_dies_is_told_and_the_worker_never_blocks(bench: Bench) -> None:
    near, _ = pipe()
    near.close(Unavailable("gone"))
    bench.pump.aim(near)
    with trio.fail_after(5):
        await bench.worker.send_all(framed(b"a", bytes(4 << 20), b"c"))
        while not bench.broken:
            await trio.lowlevel.checkpoint()
    assert [str(error) for error in bench.broken] == ["gone"]


async def test_a_new_stream_is_not_kept_waiting_by_the_old_one(bench: Bench) -> None:
    class Stuck:
        def send_nowait(self, frame: bytes) -> bool:
            return False

        async def send(self, frame: bytes) -> None:
            await trio.sleep_forever()

        async def receive(self) -> bytes:
            return b""

        async def listen(self, hear: object) -> None: ...

    bench.pump.aim(Stuck())
    await bench.worker.send_all(framed(b"lost"))
    await trio.testing.wait_all_tasks_blocked()
    near, far = pipe()
    bench.pump.aim(near)
    await bench.worker.send_all(framed(b"kept"))
    assert await far.receive() == b"kept"


async def test_frames_reach_the_worker_at_once(bench: Bench) -> None:
    hear = bench.pump.inlet()
    hear(b"abc")
    hear(b"")
    assert await bench.said(11) == framed(b"abc", b"")


async def test_what_the_worker_does_not_take_waits(bench: Bench) -> None:
    hear = bench.pump.inlet()
    bodies = [bytes([number]) * (1 << 20) for number in range(8)]
    for body in bodies:
        hear(body)
    expected = framed(*bodies)
    assert await bench.said(len(expected)) == expected


async def test_a_worker_that_takes_nothing_ends_its_stream(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "MOST_WAITING", 1 << 20)
    hear = bench.pump.inlet()

    def flood() -> None:
        for _ in range(64):
            hear(bytes(1 << 20))

    with pytest.raises(Unavailable, match="takes nothing"):
        flood()


async def test_a_frame_that_was_begun_is_ended_and_the_others_are_forgotten(bench: Bench) -> None:
    old = bench.pump.inlet()
    long = bytes(8 << 20)
    old(long)
    old(b"waits")
    new = bench.pump.inlet()
    old(b"late")
    new(b"new")
    expected = framed(long, b"new")
    assert await bench.said(len(expected)) == expected


async def test_an_impossible_frame_of_the_worker_is_an_error() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((MAX_BODY + 1).to_bytes(4, "little"))
        with pytest.raises(RemoteError, match="limit"):
            await Pump(ours, lambda error: None).run()


async def test_the_end_of_the_worker_is_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        made = Pump(ours, lambda error: None)
        hear = made.inlet()
        theirs.close()
        with trio.fail_after(5):
            await made.run()
        with pytest.raises(Unavailable, match="has ended"):
            hear(b"a")
