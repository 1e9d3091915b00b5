from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.batching import Limits, shares

LIMITS = Limits(rows=8, chunk=3)
WAITING = st.lists(st.integers(1, 40), max_size=12)


def test_one_row_for_each_answer() -> None:
    assert shares([1, 1, 1], LIMITS) == [1, 1, 1]


def test_a_prompt_alone_fills_the_call() -> None:
    assert shares([20], LIMITS) == [8]


def test_a_prompt_in_company_gets_a_chunk() -> None:
    assert shares([1, 20, 1], LIMITS) == [1, 3, 1]


def test_the_oldest_prompt_goes_first() -> None:
    assert shares([5, 20], LIMITS) == [5, 0]


def test_the_end_of_a_prompt_leaves_no_gap() -> None:
    assert shares([1, 2], LIMITS) == [1, 2]


def test_nothing_waits_and_nothing_is_taken() -> None:
    assert shares([], LIMITS) == []


@given(WAITING)
def test_a_call_is_within_its_limits(waiting: list[int]) -> None:
    taken = shares(waiting, LIMITS)
    assert sum(taken) <= LIMITS.rows
    assert all(0 <= some <= all_ for some, all_ in zip(taken, waiting, strict=True))


@given(WAITING.filter(bool))
def test_every_call_goes_on_with_something(waiting: list[int]) -> None:
    assert sum(shares(waiting, LIMITS)) > 0
