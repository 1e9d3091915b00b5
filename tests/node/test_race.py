"""Whoever is first is taken, and whatever else began is ended."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel
import trio.testing

from p2p_mesh.errors import MeshError, Unavailable
from p2p_mesh.node.race import Race

Clock = trio.testing.MockClock


async def says(what: str, after: float) -> str:
    await trio.sleep(after)
    return what


async def fails(after: float) -> str:
    await trio.sleep(after)
    raise Unavailable("gone")


class Runners:
    def __init__(
        self,
        first: Callable[[], Awaitable[str]],
        second: Callable[[], Awaitable[str | None]] | None,
    ) -> None:
        self.closed: list[str] = []
        self._first, self._second = first, second

    async def run(self) -> str:
        return await Race(self._first, self._late, self._close).run()

    async def _late(self) -> Callable[[], Awaitable[str | None]] | None:
        await trio.sleep(1.0)
        return self._second

    async def _close(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.closed.append(what)


async def test_a_first_that_is_in_time_runs_alone(autojump_clock: Clock) -> None:
    race = Runners(lambda: says("first", 0.5), lambda: says("second", 0.0))
    assert await race.run() == "first"
    assert trio.current_time() == pytest.approx(0.5)
    assert race.closed == []


async def test_a_second_that_is_faster_wins(autojump_clock: Clock) -> None:
    assert await Runners(lambda: says("first", 9.0), lambda: says("second", 1.0)).run() == "second"
    assert trio.current_time() == pytest.approx(2.0)


async def test_without_a_second_the_first_is_waited_for(autojump_clock: Clock) -> None:
    assert await Runners(lambda: says("first", 9.0), None).run() == "first"


async def test_a_first_that_fails_early_is_not_waited_beside(autojump_clock: Clock) -> None:
    with pytest.raises(MeshError):
        await Runners(lambda: fails(0.5), lambda: says("second", 0.0)).run()
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_second_goes_on_where_the_first_fails(autojump_clock: Clock) -> None:
    assert await Runners(lambda: fails(2.0), lambda: says("second", 9.0)).run() == "second"


async def none(after: float) -> str | None:
    await trio.sleep(after)
    return None


async def test_where_both_fail_it_is_the_firsts_error(autojump_clock: Clock) -> None:
    with pytest.raises(Unavailable, match="gone"):
        await Runners(lambda: fails(2.0), lambda: none(3.0)).run()


async def test_what_comes_in_the_same_moment_is_closed(autojump_clock: Clock) -> None:
    race = Runners(lambda: says("first", 2.0), lambda: says("second", 1.0))
    winner = await race.run()
    assert {winner, *race.closed} <= {"first", "second"}
    assert len(race.closed) <= 1
    assert winner not in race.closed


async def test_who_leaves_closes_what_had_begun(autojump_clock: Clock) -> None:
    race = Runners(lambda: says("first", 60.0), lambda: says("second", 60.0))
    with trio.move_on_after(10.0) as scope:
        await race.run()
    assert scope.cancelled_caught
    assert race.closed == []
