from __future__ import annotations

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


def test_every_size_is_tried_before_one_is_believed() -> None:
    batches, tried = Batches(), list[int]()
    while (size := batches.together(4)) not in tried or len(tried) < len(choices(4)) * TRIALS:
        tried.append(size)
        batches.observe(size, slowest=1.0, around=2.0)
        if len(tried) == len(choices(4)) * TRIALS:
            break
    assert sorted(set(tried), reverse=True) == choices(4)


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


def test_one_hiccup_does_not_decide() -> None:
    batches = learned(2, {1: 1.0, 2: 3.0})
    batches.observe(1, slowest=50.0, around=100.0)
    assert batches.together(2) == 1
