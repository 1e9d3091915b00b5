"""How fast a model answers, from its answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelLoad, Usage
from p2p_mesh.core.tempo import FASTEST, STEADY, Tempo
from p2p_mesh.core.wire import decode, encode


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


def test_nothing_is_known_at_first() -> None:
    tempo = Tempo()
    assert (tempo.prefill, tempo.first, tempo.whole, tempo.speed) == (0, 0, 0, 0)
    assert not tempo.is_news(0.0)


def test_reading_is_of_what_was_not_cached() -> None:
    tempo = Tempo()
    tempo.answered(usage(1000, 1, cached=800), first=2.0, rest=0.0)
    assert tempo.prefill == pytest.approx(100)


def test_long_prompts_say_more_of_reading() -> None:
    tempo = Tempo()
    tempo.read(4000, 4.0)
    tempo.read(40, 1.0)  # most of that was no reading
    assert tempo.prefill > 700


def test_short_prompts_say_nothing_of_reading() -> None:
    tempo = Tempo()
    tempo.answered(usage(1000, 1, cached=990), first=1.0, rest=0.0)
    assert tempo.prefill == 0.0


def test_times_are_smoothed() -> None:
    tempo = Tempo()
    for seconds in (1.0, 2.0):
        tempo.began(seconds)
        tempo.held(10 * seconds)
    assert (tempo.first, tempo.whole) == pytest.approx((1.2, 12.0))


def test_speed_is_of_the_tokens_after_the_first() -> None:
    tempo = Tempo()
    tempo.answered(usage(1, 101), first=5.0, rest=2.0)
    assert tempo.is_news(0.0)
    assert tempo.speed == pytest.approx(50)


def test_short_answer_says_nothing_of_speed() -> None:
    tempo = Tempo()
    tempo.answered(usage(1, 3), first=0.1, rest=0.1)
    assert not tempo.is_news(0.0)


def test_speed_is_news_only_where_it_is_another() -> None:
    tempo = Tempo()
    tempo.answered(usage(1, 101), first=0.0, rest=1.0)
    assert tempo.is_news(0.0)
    for _ in range(50):
        tempo.answered(usage(1, 101), first=0.0, rest=1.4)
    assert not tempo.is_news(2 * STEADY)
    for _ in range(50):
        tempo.answered(usage(1, 101), first=0.0, rest=2.0)
    assert tempo.is_news(2 * STEADY)
    assert tempo.speed == pytest.approx(50, rel=0.01)


def test_speed_is_no_news_again_and_again() -> None:
    tempo = Tempo()
    tempo.answered(usage(1, 101), first=0.0, rest=1.0)
    assert tempo.is_news(1000.0)
    for _ in range(50):
        tempo.answered(usage(1, 101), first=0.0, rest=10.0)
    assert not tempo.is_news(1000.0 + STEADY - 1)
    assert tempo.is_news(1000.0 + STEADY)


SECONDS = st.floats(0, 1e12)
COUNTS = st.integers(0, 2**53)


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, SECONDS, SECONDS), max_size=20))
def test_whatever_an_engine_says_can_travel(
    said: list[tuple[int, int, int, float, float]],
) -> None:
    tempo = Tempo()
    for prompt, completion, cached, first, rest in said:
        tempo.began(first)
        tempo.held(first + rest)
        tempo.answered(usage(prompt, completion, cached), first, rest)
        tempo.is_news(0.0)
    load = ModelLoad(
        model=ModelId("m"), slots=1, prefill=tempo.prefill, first=tempo.first, whole=tempo.whole
    )
    assert decode(encode(load), ModelLoad) == load
    assert 0 <= tempo.speed <= FASTEST
