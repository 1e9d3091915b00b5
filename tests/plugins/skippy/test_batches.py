from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st
from meshnode_skippy.batches import AGAIN, TRIALS, Batches, choices

STEEP = {1: 11.0, 2: 27.4, 3: 34.1, 4: 37.6, 6: 49.7, 8: 54.1}
"""Milliseconds of a batch by its rows, as measured on a processor without matrix units."""


def learned(writing: int, seconds: dict[int, float], *, between: float = 0.0) -> Batches:
    batches = Batches()
    for size in choices(writing):
        for _ in range(TRIALS):
            whole = seconds[size]
            batches.observe(size, slowest=whole / 2, around=whole + between)
    return batches


@given(st.integers(1, 64))
def test_choices_cut_evenly_and_hold_the_whole_and_the_single(writing: int) -> None:
    sizes = choices(writing)
    assert sizes[0] == writing
    assert sizes[-1] == 1
    assert sizes == sorted(set(sizes), reverse=True)


def tried(writing: int, seconds: Callable[[int], float]) -> list[int]:
    """What goes together until nothing new is tried any more; two stages that take equally long."""
    batches, sizes = Batches(), list[int]()
    for _ in range(TRIALS * writing + 1):
        size = batches.together(writing)
        sizes.append(size)
        batches.observe(size, slowest=seconds(size) / 2, around=seconds(size))
    return sizes


def test_the_best_is_believed_after_its_trials() -> None:
    sizes = tried(2, lambda size: 10.0)  # a second stage would stand still for one batch of both
    assert sizes[0] == 2
    assert sizes[-1] == 1


def test_what_cannot_win_is_not_tried() -> None:
    sizes = tried(16, lambda size: 20.0 + 6.5 * size)
    assert sizes.count(16) == 1  # once is enough to see that it loses
    assert set(sizes) == {16, 8, 4}
    assert sizes[-1] == 8


def test_a_size_that_may_win_is_tried_some_times() -> None:
    sizes = tried(16, lambda size: 20.0 + 6.5 * size)
    assert sizes.count(4) == TRIALS


@given(st.integers(1, 32), st.floats(0, 50), st.floats(0.1, 10))
def test_no_known_size_is_better_than_the_one_that_is_believed(
    writing: int, first: float, more: float
) -> None:
    def cycle(size: int) -> float:
        seconds = first + more * size
        return max(-(-writing // size) * seconds / 2, seconds)

    sizes = tried(writing, lambda size: first + more * size)
    assert cycle(sizes[-1]) <= min(map(cycle, sizes)) * (1 + 1e-9)


def test_more_who_write_are_tried_together() -> None:
    batches = learned(4, dict.fromkeys(choices(4), 10.0))
    assert batches.together(8) == 8


def test_where_two_rows_cost_more_than_twice_one_each_goes_alone() -> None:
    assert learned(4, STEEP).together(4) == 1


def test_where_rows_cost_nothing_two_batches_keep_both_stages_at_work() -> None:
    flat = dict.fromkeys(choices(8), 10.0)
    assert learned(8, flat).together(8) == 4


def test_over_a_long_way_more_batches_gain_nothing() -> None:
    flat = dict.fromkeys(choices(8), 10.0)
    assert learned(8, flat, between=500.0).together(8) == 1  # the way takes as long for one
    steep = {size: 10.0 * size for size in choices(8)}
    assert learned(8, steep, between=0.0).together(8) == 1


def test_a_single_sequence_is_a_batch() -> None:
    batches = Batches()
    assert batches.together(1) == 1
    assert batches.flights(1) == 1
    assert batches.flights(0) == 1


def test_what_lost_is_tried_again() -> None:
    batches = learned(2, {1: 1.0, 2: 5.0})
    assert batches.together(2) == 1
    for _ in range(AGAIN):
        batches.observe(1, slowest=0.5, around=1.0)
    assert batches.together(2) == 2


def test_a_hiccup_in_a_trial_does_not_decide() -> None:
    batches = Batches()
    batches.observe(2, slowest=5.0, around=10.0)
    for slowest in (5.5, 2.0, 2.0):
        batches.observe(1, slowest=slowest, around=2 * slowest)
    batches.observe(2, slowest=5.0, around=10.0)
    assert batches.together(2) == 1


def test_one_hiccup_does_not_decide() -> None:
    batches = learned(2, {1: 1.0, 2: 3.0})
    batches.observe(1, slowest=50.0, around=100.0)
    assert batches.together(2) == 1
