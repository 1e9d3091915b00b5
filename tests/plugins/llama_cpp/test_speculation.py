from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.scheduler import Pace
from meshnode_llama_cpp.speculation import DRAFTED, MOST, Hope, Lookup


def pace(step: float, row: float) -> Pace:
    found = Pace()
    found.observe(1, 0, 0, step)
    for rows in range(1, MOST + 1):
        found.observe(1, 0, rows, step + rows * row)
    return found


def test_what_followed_the_last_time_is_guessed() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.guess(4) == [4, 5, 6, 1]
    assert lookup.guess(1) == [4]


def test_the_latest_of_several_is_guessed() -> None:
    assert Lookup([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]).guess(1) == [5]


def test_nothing_is_guessed_of_what_is_new() -> None:
    assert Lookup([1, 2, 3, 4]).guess(4) == []
    assert Lookup([1]).guess(4) == []


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30))
def test_tokens_in_two_parts_are_tokens_in_one(tokens: list[int], cut: int) -> None:
    parts = Lookup(tokens[:cut])
    parts.extend(tokens[cut:])
    assert parts.guess(5) == Lookup(tokens).guess(5)


def test_nothing_is_guessed_before_a_step_was_measured() -> None:
    assert Hope().count(8, 1, Pace()) == 0


def test_one_guess_finds_out_what_rows_cost() -> None:
    found = Pace()
    found.observe(2, 0, 0, 1.0)
    assert Hope().count(8, 2, found) == 1


def test_cheap_rows_are_filled_with_guesses() -> None:
    assert Hope().count(8, 1, pace(10.0, 0.01)) == MOST
    assert Hope().count(3, 1, pace(10.0, 0.01)) == 3


def test_dear_rows_are_not() -> None:
    assert Hope().count(8, 1, pace(10.0, 9.0)) == 0


def test_a_draft_is_tried_where_looked_up_guesses_would_not_pay() -> None:
    """Rows that are not cheap, at a pace where only guesses that are mostly right pay."""
    known = pace(10.0, 5.0)
    assert Hope().count(8, 1, known) < Hope(DRAFTED).count(8, 1, known)
    assert Hope().count(1, 1, pace(10.0, 8.0)) == 0
    assert Hope(DRAFTED).count(1, 1, pace(10.0, 8.0)) == 1


def test_whoever_is_always_wrong_stops_and_tries_again_later() -> None:
    hope, known = Hope(), pace(10.0, 2.0)
    for _ in range(40):
        hope.observe(4, 0)
    tries = [hope.count(8, 1, known) for _ in range(128)]
    assert tries.count(1) == 2
    assert tries.count(0) == 126


def test_what_a_prompt_made_seem_dear_is_tried_as_well() -> None:
    known = Pace()
    known.observe(1, 0, 0, 10.0)
    known.observe(0, 1, 0, 30.0)  # the machine had other things to do while it read
    hope = Hope()
    assert [hope.count(8, 1, known) for _ in range(64)] == [0] * 63 + [1]
    known.observe(1, 0, 1, 10.1)
    assert hope.count(8, 1, known) > 1


def test_whoever_is_always_right_guesses_more() -> None:
    hope, known = Hope(), pace(10.0, 4.0)
    before = hope.count(8, 1, known)
    for _ in range(40):
        hope.observe(2, 2)
    assert hope.count(8, 1, known) > before


def test_a_guess_that_costs_time_itself_must_bring_more() -> None:
    assert Hope().count(8, 1, pace(10.0, 1.0), each=9.0) == 0
