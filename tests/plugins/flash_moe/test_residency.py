from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_flash_moe.residency import Counts, Residency


def counts(experts: int, *ids: int) -> Counts:
    return np.bincount(ids, minlength=experts)


def turn(residency: Residency, layer: int, *ids: int, rows: int = 1) -> int:
    """A call of the first layer's; returns how many had to come."""
    return len(residency.want(layer, counts(8, *ids), rows).come)


@st.composite
def calls(draw: st.DrawFn) -> list[tuple[int, list[int], int]]:
    """Of three layers of eight experts, in their order."""
    found = []
    for number in range(draw(st.integers(1, 40))):
        rows = draw(st.sampled_from([1, 1, 1, 2, 3]))
        ids = [draw(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True))
               for _ in range(rows)]  # fmt: skip
        found.append((number % 3, [one for row in ids for one in row], rows))
    return found


@given(calls(), st.integers(6, 24), st.booleans())
def test_what_is_wanted_is_there_and_there_is_never_more_than_has_room(
    calls: list[tuple[int, list[int], int]], room: int, looks_ahead: bool
) -> None:
    sizes = [1, 1, 1]
    residency, here = Residency(sizes, 8, 2, room), set[tuple[int, int]]()
    for layer, ids, rows in calls:
        changes = [residency.want(layer, counts(8, *ids), rows)]
        assert all(residency.is_here(layer, one) for one in ids)
        if looks_ahead:
            changes.append(residency.ahead((layer + 1) % 3, rows))
        for change in changes:
            assert here.issuperset(change.leave)
            here.difference_update(change.leave)
            assert here.isdisjoint(change.come)
            here.update(change.come)
        assert all((layer, one) in here for one in ids)
        assert residency.taken == len(here) <= room
        assert here == {(a, b) for a in range(3) for b in range(8) if residency.is_here(a, b)}


def test_layers_of_several_sizes_share_the_room() -> None:
    residency = Residency([3, 1], 4, 2, 8)
    residency.want(0, counts(4, 0, 1), 1)
    residency.want(1, counts(4, 0, 1), 1)
    assert residency.taken == 8
    change = residency.want(0, counts(4, 2, 3), 1)
    assert sum({0: 3, 1: 1}[layer] for layer, _ in change.leave) >= 6
    assert residency.taken <= 8


def test_what_is_used_most_stays() -> None:
    residency = Residency([1], 8, 2, 4)
    for number in range(60):
        turn(residency, 0, 0, 1 + number % 7)
    assert residency.is_here(0, 0)
    assert turn(residency, 0, 0, 7) <= 1


def test_a_habit_that_has_ended_is_forgotten() -> None:
    residency = Residency([1], 8, 2, 4)
    for _ in range(300):
        turn(residency, 0, 0, 1)
    for number in range(3000):
        turn(residency, 0, 2 + number % 3, 5 + number % 2)
    assert not residency.is_here(0, 0)


def test_reading_a_long_prompt_keeps_what_comes_next() -> None:
    """Every call wants all experts of each layer in turn, and half of them have room. By age, none
    would be there when its turn comes.
    """
    residency, every = Residency([1] * 4, 8, 2, 16), np.ones(8, np.intp) * 8
    came = 0
    for number in range(40):
        change = residency.want(number % 4, every, 64)
        came += len(change.come) if number >= 20 else 0
    assert came / (20 * 8) < 0.75


def test_experts_that_are_sure_to_be_wanted_come_ahead() -> None:
    residency, every = Residency([1] * 4, 8, 2, 24), np.ones(8, np.intp) * 8
    for layer in (0, 1, 2, 3):
        residency.want(layer, every, 64)
    came = 0
    for number in range(8):
        assert number == 0 or not residency.want(number % 4, every, 64).come
        came += len(residency.ahead((number + 1) % 4, 64).come)
        both = (number % 4, (number + 1) % 4)
        assert number == 0 or all(residency.is_here(layer, one) for layer in both
                                  for one in range(8))  # fmt: skip
    assert came


def test_nothing_comes_ahead_where_nothing_is_sure() -> None:
    residency = Residency([1] * 2, 8, 2, 12)
    turn(residency, 0, 0, 1, rows=2)
    assert not residency.ahead(1, 2).come


def test_a_short_call_reads_nothing_ahead_that_only_long_ones_want() -> None:
    residency, every = Residency([1] * 2, 64, 2, 96), np.ones(64, np.intp)
    for number in range(8):
        residency.want(number % 2, every, 32)
    assert not residency.ahead(0, 2).come


def test_what_has_no_room_together_is_refused() -> None:
    with pytest.raises(ValueError, match="8 experts of a layer are wanted; 4 have room"):
        Residency([1], 8, 2, 4).want(0, np.ones(8, np.intp), 4)


def test_sizes_are_told() -> None:
    residency = Residency([2, 3], 4, 2, 12)
    assert (residency.size(1), residency.most(0), residency.most(1)) == (3, 6, 4)
