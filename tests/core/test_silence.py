"""How long an engine may be silent before somebody asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.silence import FIRST, MOST, MOST_SLACK, QUIET, TIMES, Silence, Slack


def asked(
    now: float = 0.0, tokens: float = 0.0, prefill: float = 0.0, slack: Slack | None = None
) -> Silence:
    silence = Silence(slack or Slack())
    silence.begin("a", now, tokens=tokens, prefill=prefill)
    return silence


def test_engine_with_nothing_to_do_may_be_silent() -> None:
    assert not Silence(Slack()).is_long(1e9)


def test_silence_is_long_after_a_while() -> None:
    silence = asked()
    assert not silence.is_long(QUIET)
    assert silence.is_long(QUIET + 1)


def test_sign_of_life_breaks_it() -> None:
    silence = asked()
    silence.hear("a", 1.0)
    assert not silence.is_long(QUIET + 1)
    silence.lives(QUIET + 1)
    assert not silence.is_long(2 * QUIET)


def test_slow_engine_has_longer() -> None:
    silence = asked()
    silence.hear("a", 5.0)
    assert silence.patience == pytest.approx(5 * TIMES)


def test_long_silence_is_forgotten_in_the_end() -> None:
    silence = asked()
    silence.hear("a", 60.0)
    for _ in range(5000):
        silence.hear("a", 60.0)
    assert silence.patience == QUIET


@pytest.mark.parametrize(("prefill", "seconds"), [(100.0, 20.0), (0.0, FIRST)])
def test_long_prompt_may_be_read_for_long(prefill: float, seconds: float) -> None:
    silence = asked(tokens=1000, prefill=prefill)
    assert silence.patience == pytest.approx(QUIET + seconds)
    silence.hear("a", 0.0)
    assert silence.patience == QUIET


def test_short_prompt_is_no_reason_for_patience_where_nothing_is_known() -> None:
    assert asked(tokens=3).patience == QUIET + 3


def test_reading_is_no_silence() -> None:
    silence = asked(tokens=1000, prefill=20)
    silence.hear("a", 90.0)
    assert silence.patience == QUIET


def test_patience_ends() -> None:
    silence = asked()
    silence.hear("a", 1000.0)
    assert silence.patience == pytest.approx(MOST)


def test_next_engine_has_more_time_until_as_much_was_read() -> None:
    slack = Slack()
    usual = asked(tokens=100, slack=slack)
    patience = usual.patience
    usual.give_up()
    again = asked(tokens=100, slack=slack)
    assert again.patience == 4 * patience
    again.begin("b", 0.0, tokens=10, prefill=0)
    again.hear("b", 1.0)
    assert again.patience == 4 * patience
    again.hear("a", 1.0)
    assert again.patience == QUIET


def test_slack_has_an_end() -> None:
    slack = Slack()
    for _ in range(10):
        asked(slack=slack).give_up()
    assert slack.times == MOST_SLACK


def test_silence_goes_on_when_one_asker_leaves_and_another_comes() -> None:
    silence = asked()
    silence.end("a", 20.0)
    assert not silence.is_long(1000.0)
    silence.begin("b", 1000.0, tokens=0, prefill=0)
    assert not silence.is_long(1005.0)
    assert silence.is_long(1015.0)


def test_idle_time_is_no_silence() -> None:
    silence = asked()
    silence.hear("a", 1.0)
    silence.end("a", 1.0)
    silence.begin("b", 1000.0, tokens=0, prefill=0)
    assert not silence.is_long(1010.0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 10)), max_size=50))
def test_whoever_speaks_often_is_never_silent(steps: list[tuple[str, float]]) -> None:
    silence, now = asked(), 0.0
    silence.begin("b", now, tokens=0, prefill=0)
    for turn, pause in steps:
        now += pause
        assert not silence.is_long(now)
        silence.hear(turn, now)
