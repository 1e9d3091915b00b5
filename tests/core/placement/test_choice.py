"""Whole, stages, shards or flash: what is chosen, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.placement.choice import (
    ASSUMED,
    BACKENDS,
    CLEARLY,
    NAMES,
    Option,
    State,
    decide,
    weighed,
)
from p2p_mesh.core.records import Choice

CHOICES: tuple[Choice, ...] = get_args(Choice)
EXACT: tuple[Choice, ...] = ("whole", "stages", "flash")
MIN_MASS = 0.85


def ready(choice: Choice, speed: float | None = None, mass: float | None = None) -> Option:
    return Option(choice, "ready", tokens_per_second=speed, mass=mass)


def waits(choice: Choice, reason: str = "nodes are missing.") -> Option:
    return Option(choice, "waits", reason)


def refused(choice: Choice, reason: str = "it is too large.") -> Option:
    return Option(choice, "refused", reason)


def chosen(*options: Option, asked: Choice | None = None) -> Choice | None:
    return decide(options, asked=asked, min_mass=MIN_MASS).choice


def test_what_fits_whole_is_served_whole() -> None:
    assert chosen(ready("whole", 1), ready("stages", 9), ready("flash", 9)) == "whole"
    assert chosen(ready("whole"), ready("shards", 99, 1.0)) == "whole"


def test_fastest_of_those_that_are_exact_is_chosen() -> None:
    assert chosen(refused("whole"), ready("stages", 4), ready("flash", 5)) == "flash"
    assert chosen(ready("stages", 5), ready("flash", 4)) == "stages"
    assert chosen(ready("flash", 4), ready("stages", 4)) == "stages"


def test_speed_that_nobody_knows_counts_as_slow() -> None:
    assert chosen(ready("stages"), ready("flash", ASSUMED * 1.1)) == "flash"
    assert chosen(ready("stages"), ready("flash", ASSUMED * 0.9)) == "stages"
    assert decide([ready("flash")]).why == "flash: an unknown speed, 1 token/s assumed"


def test_shards_must_be_clearly_faster_than_what_is_exact() -> None:
    flash = ready("flash", 5)
    assert chosen(flash, ready("shards", 5 * CLEARLY, 0.9)) == "shards"
    assert chosen(flash, ready("shards", 5 * CLEARLY - 0.1, 0.9)) == "flash"
    assert chosen(flash, ready("shards", 5 * CLEARLY, MIN_MASS - 0.01)) == "flash"
    assert chosen(flash, ready("shards", 5 * CLEARLY, None)) == "flash"


def test_unknown_speed_is_no_reason_for_other_answers() -> None:
    assert chosen(ready("flash"), ready("shards", 99, 0.9)) == "flash"
    assert chosen(ready("flash", 0.1), ready("shards", None, 0.9)) == "flash"


def test_speeds_are_compared_where_both_are_known() -> None:
    unknown = "by expert shards: 10.0 tokens/s expected, whether it is faster is not known, with"
    assert unknown in decide([ready("stages"), ready("shards", 10, 0.9)]).why
    for flash, shards in ((0.1, None), (None, None)):
        why = decide([ready("flash", flash), ready("shards", shards, 0.9)]).why
        assert "whether it is faster is not known" in why
        assert "times as fast" not in why


def test_shards_that_alone_can_begin_are_chosen() -> None:
    assert chosen(waits("stages"), ready("shards", None, 0.9)) == "shards"
    assert chosen(refused("stages"), ready("shards", 1, 0.8)) is None


def test_what_can_begin_comes_before_stages_that_wait() -> None:
    assert chosen(waits("stages"), ready("flash", 0.01)) == "flash"


def test_where_nothing_can_begin_stages_wait_for_nodes() -> None:
    found = decide([refused("whole"), waits("stages"), waits("shards")])
    assert (found.choice, found.is_waiting) == ("stages", True)
    assert "nodes are missing" in found.why


def test_where_no_nodes_could_help_all_reasons_are_told() -> None:
    found = decide([refused("whole"), refused("stages", "no."), waits("shards", "no ranking.")])
    assert found.choice is None
    assert found.why == "whole: it is too large; in stages: no; by expert shards: no ranking"


def test_of_a_way_that_is_not_taken_a_sentence_is_said() -> None:
    whole = refused("whole", "it takes 1.5 GB. No less than 1.2 GB will do.")
    for other in (ready("flash", 1), waits("stages")):
        why = decide([whole, other]).why
        assert "whole: it takes 1.5 GB" in why
        assert "No less" not in why


def test_why_has_the_numbers_of_all() -> None:
    options = refused("whole"), ready("stages", 2), ready("flash", 5), ready("shards", 6, 0.91)
    assert decide(options).why == (
        "flash: 5.0 tokens/s expected; whole: it is too large; in stages: 2.0 tokens/s expected; "
        "by expert shards: 6.0 tokens/s expected, less than 2 times as fast, with other answers "
        "than the model's"
    )
    assert decide((*options[:3], ready("shards", 60, 0.91))).why == (
        "by expert shards: 60.0 tokens/s expected, with 0.91 of the routing; over 2 times as fast "
        "as flash, 5.0 tokens/s expected"
    )
    assert decide([waits("stages"), ready("shards", 6, 0.91)]).why == (
        "by expert shards: 6.0 tokens/s expected, with 0.91 of the routing; nothing else can begin "
        "now"
    )
    kept = decide([ready("flash", 5), ready("shards", 60, 0.5)], min_mass=MIN_MASS).why
    assert "it would keep 0.50 of the routing, and 0.85 are wanted" in kept


@pytest.mark.parametrize("asked", CHOICES)
def test_what_was_asked_for_is_done_or_refused(asked: Choice) -> None:
    others = [ready(one, 99, 1.0) for one in CHOICES if one != asked]
    assert chosen(*others, ready(asked, 0.1), asked=asked) == asked
    found = decide([*others, waits(asked)], asked=asked)
    assert (found.choice, found.is_waiting) == (asked, True)
    for option in ([refused(asked)], []):
        found = decide([*others, *option], asked=asked)
        assert found.choice is None
        assert NAMES[asked] in found.why


def test_shards_that_were_asked_for_still_keep_to_the_floor() -> None:
    assert chosen(ready("shards", 9, MIN_MASS), asked="shards") == "shards"
    assert chosen(ready("shards", 9, None), asked="shards") == "shards"
    assert chosen(ready("shards", 9, MIN_MASS - 0.01), asked="shards") is None


def test_floor_is_for_shards_that_could_begin() -> None:
    for option in (ready("flash", 1, 0.1), waits("shards"), refused("shards")):
        assert weighed(option, None, MIN_MASS) is option


def test_every_way_has_a_name_and_all_but_whole_a_backend_of_their_own() -> None:
    assert set(NAMES) == set(CHOICES)
    assert set(BACKENDS) == set(CHOICES) - {"whole"}


# Laws

SPEEDS = st.none() | st.floats(0, 1e6)
MASSES = st.none() | st.floats(0, 1)


@st.composite
def ways(draw: st.DrawFn) -> list[Option]:
    """Some of the four, each as it may be."""
    return [
        Option(choice, draw(st.sampled_from(get_args(State))), f"why {choice}", draw(SPEEDS),
               draw(MASSES) if choice == "shards" else None)
        for choice in draw(st.permutations(CHOICES))[: draw(st.integers(0, 4))]
    ]  # fmt: skip


ASKED = st.none() | st.sampled_from(CHOICES)


@given(ways(), ASKED, st.floats(0, 1))
def test_nothing_is_chosen_that_does_not_fit(
    options: list[Option], asked: Choice | None, floor: float
) -> None:
    found = decide(options, asked=asked, min_mass=floor)
    if found.choice is None:
        return
    option = next(one for one in options if one.choice == found.choice)
    assert option.state == ("waits" if found.is_waiting else "ready")
    if option.choice == "shards" and option.state == "ready":
        assert asked == "shards" if option.mass is None else option.mass >= floor


@given(ways(), st.sampled_from(CHOICES), st.floats(0, 1))
def test_asked_for_or_nothing(options: list[Option], asked: Choice, floor: float) -> None:
    assert decide(options, asked=asked, min_mass=floor).choice in (asked, None)


@given(ways(), st.floats(0, 1))
def test_what_is_exact_and_can_begin_is_never_refused(options: list[Option], floor: float) -> None:
    found = decide(options, min_mass=floor)
    if any(one.state == "ready" and one.choice in EXACT for one in options):
        assert found.choice is not None
        assert not found.is_waiting


@given(ways(), st.floats(0, 1), st.floats(0, 1e6))
def test_whatever_is_chosen_stays_so_when_it_becomes_faster(
    options: list[Option], floor: float, more: float
) -> None:
    before = decide(options, min_mass=floor).choice
    faster = [
        replace(one, tokens_per_second=one.tokens_per_second + more)
        if one.choice == before and one.tokens_per_second is not None
        else one
        for one in options
    ]
    after = decide(faster, min_mass=floor).choice
    # An exact way that gets faster beats no shard that it lost to, and loses to none that it beat.
    assert after == before


@given(ways(), ASKED, st.floats(0, 1))
def test_order_in_which_they_are_told_does_not_count(
    options: list[Option], asked: Choice | None, floor: float
) -> None:
    one = decide(options, asked=asked, min_mass=floor)
    other = decide(options[::-1], asked=asked, min_mass=floor)
    assert (one.choice, one.is_waiting) == (other.choice, other.is_waiting)


def test_words_are_there_for_every_state_of_all() -> None:
    for states in product(get_args(State), repeat=4):
        options = [Option(*one, "why", 1.0, 0.9) for one in zip(CHOICES, states, strict=True)]
        assert decide(options).why
