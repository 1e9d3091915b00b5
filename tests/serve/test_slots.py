"""Waiting for a slot, whatever happens meanwhile."""

import math
from collections import Counter
from functools import partial
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from p2p_mesh.core.names import ModelId
from p2p_mesh.errors import EngineDied, Overloaded
from p2p_mesh.serve.slots import LONGEST_WAIT, QUEUE, Slots


def slots(count: int = 1, whole: float = 0.0) -> Slots:
    return Slots(ModelId("m"), count, lambda: whole)


class Hall:
    """Askers, and in which order they had a slot."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.order = ""
        self.refused: list[Overloaded] = []

    async def ask(self, asker: str, seconds: float = 1.0, *, is_resumed: bool = False) -> None:
        try:
            async with self.slots.hold(asker, is_resumed=is_resumed):
                self.order += asker
                await trio.sleep(seconds)
        except Overloaded as error:
            self.refused.append(error)


async def test_askers_take_turns(autojump_clock: MockClock) -> None:
    hall = Hall(slots())
    async with trio.open_nursery() as nursery:
        for asker in "aaab":
            nursery.start_soon(hall.ask, asker)
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(hall.ask, "c", is_resumed=True))
    assert hall.order == "aabca"
    assert trio.current_time() == pytest.approx(5)


async def test_flood_of_one_does_not_keep_another_out(autojump_clock: MockClock) -> None:
    hall = Hall(slots())
    async with trio.open_nursery() as nursery:
        for _ in range(QUEUE + 1):
            nursery.start_soon(hall.ask, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hall.ask, "b")
    assert len(hall.refused) == 1
    assert hall.order.count("a") == QUEUE
    assert hall.order.index("b") <= 2


@pytest.mark.parametrize(("whole", "seconds"), [(0.0, QUEUE / 2), (0.001, 1.0), (9.0, 60.0)])
async def test_refused_are_told_when_to_come_again(
    whole: float, seconds: float, autojump_clock: MockClock
) -> None:
    hall = Hall(slots(2, whole))
    async with trio.open_nursery() as nursery:
        for _ in range(QUEUE + 2):
            nursery.start_soon(hall.ask, "a")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="64 requests wait for m already") as caught:
            async with hall.slots.hold("a"):
                raise AssertionError
    assert caught.value.retry_after == pytest.approx(seconds)
    assert seconds <= LONGEST_WAIT


async def test_cancelled_waiter_leaves_at_once(autojump_clock: MockClock) -> None:
    hall = Hall(slots())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.ask, "a", 10.0)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await hall.ask("b")
        assert (hall.slots.active, hall.slots.queued) == (1, 0)


async def test_cancelled_before_it_began_holds_nothing() -> None:
    hall = Hall(slots())
    with trio.CancelScope() as scope:
        scope.cancel()
        await hall.ask("a")
    assert (hall.slots.active, hall.order) == (0, "")


async def test_waiter_that_is_called_and_cancelled_at_once_passes_its_slot_on(
    autojump_clock: MockClock,
) -> None:
    hall = Hall(slots())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hall.ask, "a", 1.0)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_at(1.0):
            nursery.start_soon(hall.ask, "c")
            await hall.ask("b", math.inf)
    assert hall.slots.active == 0
    assert hall.order in ("ac", "abc", "acb")


async def test_closing_sends_all_that_wait_away(autojump_clock: MockClock) -> None:
    hall = Hall(slots())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hall.ask, "a", 5.0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(_close, hall.slots)
            with pytest.raises(EngineDied, match="gone"):
                await hall.ask("b")
            assert trio.current_time() == pytest.approx(1)
        with pytest.raises(EngineDied):
            await hall.ask("b")
    assert hall.slots.active == 0


async def _close(slots: Slots) -> None:
    await trio.sleep(1)
    slots.close(EngineDied("gone"))


async def test_idle_is_when_nobody_holds_or_waits(autojump_clock: MockClock) -> None:
    hall = Hall(slots())
    await hall.slots.wait_idle()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hall.ask, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hall.slots.wait_idle)
        await hall.slots.wait_idle()
        assert trio.current_time() == pytest.approx(3)


MOMENTS = st.floats(0, 20).map(lambda seconds: round(seconds, 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), MOMENTS, MOMENTS, MOMENTS), max_size=40),
    st.integers(1, 3),
)
def test_no_slot_is_lost_whoever_comes_and_goes(
    visits: list[tuple[str, float, float, float]], count: int
) -> None:
    async def visit(hall: Hall, asker: str, at: float, holds: float, patience: float) -> None:
        await trio.sleep(at)
        with trio.move_on_after(patience):
            await hall.ask(asker, holds)
        assert 0 <= hall.slots.active <= count

    async def main() -> None:
        hall = Hall(slots(count))
        async with trio.open_nursery() as nursery:
            for one in visits:
                nursery.start_soon(visit, hall, *one)
        assert (hall.slots.active, hall.slots.queued, hall.refused) == (0, 0, [])
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(hall.ask, "z")
            await trio.testing.wait_all_tasks_blocked()
            assert (hall.slots.active, hall.slots.queued) == (count, 0)

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_nobody_starves_beside_a_flood(autojump_clock: MockClock) -> None:
    hall, rng = Hall(slots(2)), Random(1)

    async def flood(asker: str) -> None:
        while True:
            await hall.ask(asker, rng.random())

    with trio.move_on_after(200):
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(flood, "a")
            nursery.start_soon(flood, "b")
            nursery.start_soon(flood, "c")
    counts = Counter(hall.order)
    assert counts["b"] > counts["a"] / 3
    assert counts["c"] > counts["a"] / 3
