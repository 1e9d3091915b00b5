from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.scheduler import (
    AGAIN,
    BURST,
    EXACT,
    STALL,
    Limits,
    Pace,
    Turn,
    compose,
    group,
)

LIMITS = Limits()
turns = st.builds(
    Turn,
    unread=st.sampled_from([0, 0, 0, 1, 5, 700, 9000]),
    whole=st.sampled_from([5, 700, 9000]),
    guessed=st.integers(0, 8),
    most=st.sampled_from([1, 7, 2**31]),
)


def paced(step: float = 10.0, row: float = 4.0) -> Pace:
    """A machine whose rows cost alike, however many."""
    pace = Pace()
    for writing in (1, 2, 4, 8):
        pace.observe(writing, 0, 0, step)
    for _ in range(40):
        rows = pace.beside(1)
        pace.observe(1, rows, 0, step + rows * row)
    return pace


@given(st.lists(turns, max_size=20))
def test_a_call_is_never_overfull_and_nobody_gets_more_than_asked(found: list[Turn]) -> None:
    counts = compose(found, EXACT, paced())
    assert sum(counts) <= EXACT.rows
    for turn, count in zip(found, counts, strict=True):
        assert count <= (min(turn.unread, turn.most) if turn.unread else 1 + turn.guessed)


@given(st.lists(turns, min_size=1, max_size=20))
def test_something_is_computed_always(found: list[Turn]) -> None:
    assert sum(compose(found, LIMITS, Pace())) > 0


def prompt(unread: int, whole: int | None = None) -> Turn:
    return Turn(unread, unread if whole is None else whole)


@given(st.lists(turns, max_size=20))
def test_whoever_writes_gets_a_row_before_anybody_guesses(found: list[Turn]) -> None:
    counts = compose(found, Limits(rows=20), paced())
    assert all(count for turn, count in zip(found, counts, strict=True) if not turn.unread)


def test_prompts_fill_the_call_where_nobody_writes() -> None:
    assert compose([prompt(300), prompt(900)], LIMITS, Pace()) == [300, 212]


def test_what_is_left_over_of_a_prompt_is_read_first() -> None:
    calls, left = [], 1100
    while left:
        calls += compose([prompt(left, 1100)], LIMITS, Pace())
        left -= calls[-1]
    assert calls == [76, 512, 512]


@given(st.integers(1, 10_000), st.integers(1, 600))
def test_a_prompt_takes_no_more_calls_than_it_must(length: int, rows: int) -> None:
    calls, left = 0, length
    while left:
        left -= compose([prompt(left, length)], Limits(rows), Pace())[0]
        calls += 1
    assert calls == -(-length // rows)


def test_those_whose_slots_follow_each_other_go_together() -> None:
    assert group([4, 1, 3, 2], 2, 0) == [0, 1]
    assert group([4, 5, 3, 2], 2, 0) == [2, 3]


def test_a_group_waits_for_its_last() -> None:
    assert group([1, None, 2, 2], 2, 1) == [2, 3]
    assert group([1, None, None, None], 2, 2) is None


def test_where_too_few_are_on_their_way_a_part_of_a_group_goes() -> None:
    assert group([None, 1, 1, None, None, None], 3, 1) == [1, 2]


def test_nobody_goes_where_nobody_has_come_back() -> None:
    assert group([None, None], 1, 1) is None


@given(st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 20))
def test_who_goes_has_come_back_and_is_not_too_many(fed: list[int | None], together: int) -> None:
    went = group(fed, together, 0)
    ready = [place for place, call in enumerate(fed) if call is not None]
    assert bool(went) == bool(ready)
    assert set(went or ()) <= set(ready)
    assert len(went or ()) <= together


def test_groups_that_are_askew_fall_into_step() -> None:
    """Whatever goes first, in the end a group is a run of slots."""
    fed: list[int | None] = [*range(16)]
    flying = [[1, 2, 3, 9, 12, 13, 14, 15]]
    for one in flying[0]:
        fed[one] = None
    for call in range(16, 40):
        while len(flying) < 2 and (went := group(fed, 8, len(flying))) is not None:
            flying.append(went)
            for one in went:
                fed[one] = None
        for one in flying.pop(0):
            fed[one] = call
    assert {tuple(one) for one in flying} <= {tuple(range(8)), tuple(range(8, 16))}


def test_a_long_prompt_waits_for_who_writes() -> None:
    assert compose([Turn(), prompt(4000)], LIMITS, paced(step=10.0, row=4.0)) == [1, 2]


def test_the_last_of_a_long_prompt_is_no_short_prompt() -> None:
    assert compose([Turn(), prompt(40, 4000)], LIMITS, paced(step=10.0, row=4.0)) == [1, 2]


def test_a_prompt_that_takes_no_time_is_read_at_once() -> None:
    fast = paced(step=0.01, row=0.004)
    assert compose([Turn(), prompt(4000), prompt(100)], LIMITS, fast) == [1, 0, 100]
    assert compose([Turn(), prompt(200)], LIMITS, fast)[1] < 10


def test_a_fast_machine_reads_much_beside_who_writes() -> None:
    assert compose([Turn(), prompt(4000)], LIMITS, paced(step=10.0, row=0.02))[1] >= 384


def test_nothing_is_known_and_one_row_is_tried() -> None:
    assert compose([Turn(), prompt(4000)], LIMITS, Pace()) == [1, 1]


def test_short_prompts_of_a_crowd_come_first() -> None:
    crowd = [Turn(), prompt(100), prompt(100)]
    assert compose(crowd, LIMITS, paced()) == [1, 100, BURST - 100]


def test_long_prompts_are_no_crowd() -> None:
    assert sum(compose([Turn(), prompt(4000), prompt(4000)], LIMITS, paced())) <= 4


def test_a_prompt_that_is_scored_gets_as_many_rows_as_can_be_answered() -> None:
    assert compose([Turn(300, 300, most=64)], LIMITS, Pace()) == [64]


@given(
    step=st.floats(0.5, 100), first=st.floats(0.01, 200), row=st.floats(0.01, 50),
    writing=st.integers(1, 16),
)  # fmt: skip
def test_steps_stay_within_the_stall_once_they_are_known(
    step: float, first: float, row: float, writing: int
) -> None:
    pace = Pace()
    pace.observe(writing, 0, 0, step)
    for _ in range(60):
        rows = pace.beside(writing)
        pace.observe(writing, rows, 0, step + (first + row * rows if rows else 0.0))
    rows = pace.beside(writing)
    assert rows <= 1 or step + first + row * rows <= STALL * step * 1.02


def test_what_is_usual_is_learned_again_while_a_long_prompt_is_read() -> None:
    pace, step = Pace(), 10.0
    pace.observe(1, 0, 0, step)
    for _ in range(30 * AGAIN):
        step *= 1.001
        rows = pace.beside(1)
        pace.observe(1, rows, 0, step * (1 + 0.5 * rows))
    usual = pace.step(1)
    assert usual is not None
    assert usual > 0.8 * step


def test_what_more_rows_take_now_is_known_from_fewer() -> None:
    """A prompt's rows take longer the more was read of it; other numbers were tried long ago."""
    pace = Pace()
    pace.observe(1, 0, 0, 20.0)
    for rows in (1, 2, 3, 4, 6, 8):
        pace.observe(1, rows, 0, 20.0 + 4.0 * rows)
    for _ in range(20):
        pace.observe(1, 4, 0, 20.0 + 30.0)
    eight = pace.reading(8)
    assert eight is not None
    assert eight > 55.0


def test_guesses_take_longer_as_the_answer_grows() -> None:
    pace = Pace()
    pace.observe(1, 0, 0, 20.0)
    pace.observe(1, 0, 4, 20.0 + 12.0)
    for _ in range(60):
        pace.observe(1, 0, 0, 50.0)
    four = pace.guessing(4)
    assert four is not None
    assert four > 29.0


def test_guesses_say_nothing_of_how_long_prompts_take() -> None:
    pace = Pace()
    pace.observe(1, 0, 0, 20.0)
    for rows in (1, 2, 4, 8, 4, 2, 1):
        pace.observe(1, 0, rows, 20.1)
    assert pace.beside(1) == 1


@given(st.lists(turns, max_size=20))
def test_guesses_take_nothing_from_prompts(found: list[Turn]) -> None:
    silent = [Turn(one.unread, one.whole, 0, one.most) for one in found]
    counts, without = (compose(one, LIMITS, paced()) for one in (found, silent))
    for turn, count, alone in zip(found, counts, without, strict=True):
        assert count == alone or (not turn.unread and count > alone)


def test_a_step_with_a_prompt_and_guesses_is_within_the_stall() -> None:
    assert sum(compose([Turn(guessed=8), prompt(4000)], LIMITS, paced(10.0, 4.0))) == 3


def test_while_the_machine_is_slow_steps_are_for_the_answers_alone() -> None:
    pace = paced(step=10.0, row=4.0)
    assert pace.beside(1) == 2
    pace.observe(1, 2, 0, 40.0)
    assert pace.beside(1) == 0
    for _ in range(3):  # so slow it stays, and that becomes usual
        pace.observe(1, 0, 0, 20.0)
    pace.observe(1, 0, 0, 10.0)
    assert pace.beside(1) > 0


def test_after_a_hiccup_a_prompt_gets_no_more_rows_than_before() -> None:
    pace = paced(step=10.0, row=6.0)
    assert pace.beside(1) == 1
    for seconds in (25.0, 25.0, 10.0):
        pace.observe(1, 0, 0, seconds)
    assert pace.beside(1) == 1


def test_a_machine_that_stays_slow_does_not_leave_a_prompt_unread() -> None:
    pace, given = paced(step=10.0, row=4.0), list[int]()
    for _ in range(100):
        given.append(pace.beside(1))
        pace.observe(1, given[-1], 0, 5 * (10.0 + 4.0 * given[-1]))
    assert sum(given) > 80


def test_a_hiccup_is_forgotten() -> None:
    pace = Pace()
    for seconds in (10.0, 10.0, 500.0, 10.0, 10.0, 10.0, 10.0, 10.0):
        pace.observe(1, 0, 0, seconds)
    found = pace.step(1)
    assert found is not None
    assert found < 12.0


def test_what_was_not_measured_lies_between_what_was() -> None:
    pace = Pace()
    pace.observe(2, 0, 0, 10.0)
    pace.observe(6, 0, 0, 20.0)
    assert pace.step(4) == 15.0
    assert pace.step(12) == 40.0
    assert pace.step(1) == 10.0
