"""A stage as its coordinator sees it: how far it is, and that it is given up in time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from meshnode_skippy import lease
from meshnode_skippy.lease import (
    Broken,
    Commit,
    Committed,
    Loaded,
    LoadStage,
    Prepared,
    Progress,
    Renew,
)
from meshnode_skippy.local import End, pipe
from meshnode_skippy.seat import Seat
from msgspec.structs import replace

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.sites import Site
from p2p_mesh.core.stages import Place
from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import EngineDied, Unavailable
from p2p_mesh.serve.backend import Stream
from tests.plugins.skippy.test_lease import PREPARE

Clock = trio.testing.MockClock
PLACE = Place(Site(PeerId("b"), name="b"), 3, 6, memory_bytes=1, read_bytes=1)
COMMIT = Commit(epoch=1, next=PeerId("c"), stage=2, secret=bytes(16))


@dataclass
class Table:
    """A seat, and the end of its stream that the holder has."""

    seat: Seat
    far: End
    alarms: list[None] = field(default_factory=list)

    async def hears(self, report: Any) -> None:
        await self.far.send(encode(report))
        await trio.testing.wait_all_tasks_blocked()

    async def told(self) -> Any:
        frame = await self.far.receive()
        while (order := lease.read_order(frame)) == Renew():
            frame = await self.far.receive()
        return order


@asynccontextmanager
async def opening(stream: End) -> AsyncIterator[Stream]:
    try:
        yield stream
    finally:
        stream.close()


@pytest.fixture
async def table(nursery: trio.Nursery) -> Table:
    near, far = pipe()
    alarms: list[None] = []
    seat = Seat(PREPARE, PLACE, alarm=partial(alarms.append, None))
    nursery.start_soon(seat.run, partial(opening, near))
    assert lease.read_prepare(await far.receive()) == PREPARE
    return Table(seat, far, alarms)


async def loaded(table: Table, nursery: trio.Nursery) -> None:
    await table.hears(Prepared(memory_bytes=7))
    nursery.start_soon(table.seat.load)
    assert await table.told() == LoadStage()
    await table.hears(Loaded(numerics="n"))


async def test_it_tells_how_far_it_is(table: Table, nursery: trio.Nursery) -> None:
    shares = [table.seat.share]
    await table.hears(Progress(share=0.5))
    shares.append(table.seat.share)
    await table.hears(Prepared())
    shares.append(table.seat.share)
    nursery.start_soon(table.seat.load)
    await table.told()
    await table.hears(Progress(share=0.5))
    shares.append(table.seat.share)
    await table.hears(Loaded())
    shares.append(table.seat.share)
    assert shares == [0, 0.3, 0.6, 0.8, 1]


async def test_it_renews_its_lease(table: Table, autojump_clock: Clock) -> None:
    await trio.sleep(2.5 * lease.RENEW)
    assert [lease.read_order(await table.far.receive()) for _ in range(2)] == [Renew(), Renew()]


async def test_it_reaches_the_next_stage(table: Table, nursery: trio.Nursery) -> None:
    await loaded(table, nursery)
    nursery.start_soon(table.seat.commit, COMMIT)
    assert await table.told() == COMMIT
    assert not table.seat.is_running
    await table.hears(Committed(epoch=1))
    assert table.seat.is_running


async def test_a_link_that_breaks_is_an_alarm(table: Table, nursery: trio.Nursery) -> None:
    await loaded(table, nursery)
    async with trio.open_nursery() as waiting:
        waiting.start_soon(table.seat.commit, COMMIT)
        await table.told()
        await table.hears(Broken(epoch=1, reason="c is not known"))
    assert not table.seat.is_running
    assert (table.seat.reason, len(table.alarms)) == ("c is not known", 1)


async def test_an_old_link_that_breaks_means_nothing(table: Table, nursery: trio.Nursery) -> None:
    await loaded(table, nursery)
    for epoch in (1, 2):
        nursery.start_soon(table.seat.commit, replace(COMMIT, epoch=epoch))
        await table.told()
        await table.hears(Committed(epoch=epoch))
    await table.hears(Broken(epoch=1))
    assert table.seat.is_running


async def test_an_error_of_the_holder_is_the_end(table: Table) -> None:
    await table.hears(ErrorMessage.of(EngineDied("killed by SIGKILL")))
    assert isinstance(table.seat.end, EngineDied)
    assert len(table.alarms) == 1
    await table.seat.wait_left()
    with trio.fail_after(1):
        await table.seat.load()
        await table.seat.commit(COMMIT)


async def test_the_end_of_the_stream_is_the_end(table: Table) -> None:
    table.far.close(Unavailable("b is gone"))
    await table.seat.prepare()
    assert str(table.seat.end) == "b is gone"


async def test_a_report_out_of_turn_is_the_end(table: Table) -> None:
    await table.hears(Loaded())
    assert "out of turn" in str(table.seat.end)


async def test_one_that_shows_no_progress_is_given_up(table: Table, autojump_clock: Clock) -> None:
    begun = trio.current_time()
    await table.seat.prepare()
    assert "nothing came of it" in str(table.seat.end)
    assert trio.current_time() - begun == pytest.approx(lease.STALLED)


async def test_progress_is_waited_for(
    table: Table, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    nursery.start_soon(table.seat.prepare)
    for step in range(1, 5):
        await trio.sleep(0.9 * lease.STALLED)
        await table.hears(Progress(share=step / 10))
    assert table.seat.end is None


@pytest.mark.parametrize(
    "reports",
    [
        [Progress(share=0.5)] * 9,
        [Progress(share=0.5 + step * 1e-6) for step in range(9)],
        [Broken(epoch=1)] * 9,
    ],
)
async def test_reports_without_progress_are_not_waited_for(
    table: Table, nursery: trio.Nursery, autojump_clock: Clock, reports: list[Any]
) -> None:
    begun = trio.current_time()
    nursery.start_soon(table.seat.prepare)
    for report in reports:
        if table.seat.end is None:
            await table.hears(report)
            await trio.sleep(0.4 * lease.STALLED)
    assert "nothing came of it" in str(table.seat.end)
    assert trio.current_time() - begun < 2 * lease.STALLED


async def test_a_connection_that_dies_while_it_is_spoken_to_is_one_end() -> None:
    class Dying(End):
        async def send(self, frame: bytes) -> None:
            if lease_begun.is_set():
                await self._die()
            lease_begun.set()

        async def listen(self, hear: Callable[[bytes], None]) -> None:
            await self._die()

        async def _die(self) -> None:
            await dead.wait()
            raise Unavailable("b is gone")

    lease_begun, dead = trio.Event(), trio.Event()
    seat = Seat(PREPARE, PLACE, alarm=lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seat.run, partial(opening, Dying()))
        await lease_begun.wait()
        seat._orders.send_nowait(LoadStage())
        await trio.testing.wait_all_tasks_blocked()
        dead.set()
    assert str(seat.end) == "b is gone"


async def test_a_lease_that_is_left_says_why(table: Table) -> None:
    table.seat.leave(Unavailable("another plan"))
    await table.seat.wait_left()
    assert str(table.seat.end) == "another plan"
    with pytest.raises(Unavailable):
        await table.far.receive()
