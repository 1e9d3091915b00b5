"""Who has which experts: what every assignment keeps, and why there is none."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2p_mesh.core.experts.assignment import (
    MAX_PARTS,
    MIN_MASS,
    Assignment,
    Impossible,
    assign,
    fewest,
    steps,
)
from p2p_mesh.core.experts.layout import Layer, Layout, Sliced
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking, uniform
from p2p_mesh.core.names import Digest
from p2p_mesh.errors import ModelError

MODEL = Digest("0" * 64)
GB = 10**9


def layout(
    experts: int = 64, used: int = 4, layers: int = 2, groups: int = 1, groups_used: int = 1
) -> Layout:
    """Each expert takes 10 MB in all layers."""
    each = tuple(Layer(number, used, (Sliced("w", 0, GB // 100 // layers),))
                 for number in range(layers))  # fmt: skip
    return Layout(experts, used, each, groups, groups_used)


def skewed(of: Layout, falling: float = 0.9) -> Ranking:
    """Each expert is used so much less than the one before it; in odd layers than the one after."""
    masses = tuple(1000 * falling**place for place in range(of.experts))
    layers = tuple(
        LayerRanking(
            layer=number, counts=(1000,) * of.experts, masses=masses if number % 2 else masses[::-1]
        )
        for number in of.numbers
    )
    return Ranking(model=MODEL, tokens=1000, experts=of.experts, used=of.used, layers=layers)


def found(assignment: Assignment | Impossible) -> Assignment:
    assert isinstance(assignment, Assignment), assignment
    return assignment


def refused(assignment: Assignment | Impossible) -> Impossible:
    assert isinstance(assignment, Impossible), assignment
    return assignment


SHAPES = [layout(), layout(8, 2), layout(60, 4), layout(64, 6, 2, 4, 2), layout(128, 8, 3)]
shapes = st.sampled_from(SHAPES)
falls = st.floats(0.5, 1)


@given(shapes, falls, st.integers(1, 8))
def test_every_expert_is_on_a_part_and_on_two_of_three(
    of: Layout, falling: float, parts: int
) -> None:
    made = found(assign(skewed(of, falling), parts, layout=of))
    for place in range(len(of.layers)):
        held = Counter(one for part in made.parts for one in part.experts[place])
        assert set(held) == set(range(of.experts))
        assert min(held.values()) >= made.overlap == (2 if parts > 2 else 1)


@given(shapes, falls, st.integers(1, 8), st.data())
def test_parts_have_as_many_experts_of_each_layer_and_group(
    of: Layout, falling: float, parts: int, data: st.DataObject
) -> None:
    keep = data.draw(st.sampled_from(steps(of)))
    made = assign(skewed(of, falling), parts, layout=of, keep=keep, min_mass=0)
    if isinstance(made, Impossible):
        assert "cannot have every expert" in made.why
        return
    width = of.experts // of.groups
    for part in made.parts:
        for own in part.experts:
            assert sorted(set(own)) == list(own)
            assert len(own) == made.keep == keep
            assert set(Counter(one // width for one in own).values()) == {keep // of.groups}


@given(shapes, falls, st.integers(1, 8), st.sampled_from([1, 2]))
def test_mass_never_falls_where_there_is_more_room(
    of: Layout, falling: float, parts: int, overlap: int
) -> None:
    made = [assign(skewed(of, falling), parts, layout=of, keep=keep, min_mass=0, overlap=overlap)
            for keep in steps(of)]  # fmt: skip
    possible = [one for one in made if isinstance(one, Assignment)]
    assert made[len(made) - len(possible) :] == possible
    for less, more in pairwise(possible):
        for part, larger in zip(less.parts, more.parts, strict=True):
            assert part.mass <= larger.mass
            for own, others in zip(part.experts, larger.experts, strict=True):
                assert set(own) <= set(others)
    assert possible[-1].mass == 1


@given(shapes, falls, st.integers(1, 8), st.floats(0, 1))
def test_fewest_experts_that_keep_enough_are_taken(
    of: Layout, falling: float, parts: int, floor: float
) -> None:
    ranking = skewed(of, falling)
    made = found(assign(ranking, parts, layout=of, min_mass=floor))
    assert made.mass >= floor
    fewer = [one for one in steps(of) if one < made.keep]
    if fewer:
        refused(assign(ranking, parts, layout=of, keep=fewer[-1], min_mass=floor,
                       overlap=made.overlap))  # fmt: skip


@given(shapes, falls, st.lists(st.integers(0, 2 * GB), min_size=1, max_size=5), st.data())
def test_order_of_nodes_does_not_matter_and_twice_is_once(
    of: Layout, falling: float, room: list[int], data: st.DataObject
) -> None:
    ranking = skewed(of, falling)
    made = assign(ranking, len(room), layout=of, room=room)
    other = data.draw(st.permutations(room))
    assert assign(ranking, len(room), layout=of, room=other) == made
    if isinstance(made, Assignment):
        assert made.keep * of.bytes_per_expert <= min(room)
        assert made.mass >= MIN_MASS


def test_the_most_that_fits_is_taken_where_room_is_told() -> None:
    of = layout()
    made = found(assign(skewed(of), 2, layout=of, room=[GB // 2, GB]))
    assert made.keep == 48  # of 10 MB, and a multiple of 16
    assert found(assign(skewed(of), 2, layout=of, room=[GB, GB])).keep == 64


def test_mass_of_a_part_is_the_mean_of_its_layers() -> None:
    of = layout()
    made = found(assign(skewed(of), 2, layout=of, keep=48))
    part = made.parts[0]
    assert part.mass == sum(part.masses) / 2
    assert part.least == min(part.masses) <= made.mass <= part.mass < 1


def test_core_is_what_all_parts_have() -> None:
    of = layout()
    made = found(assign(skewed(of), 2, layout=of, keep=48))
    assert made.core == 32  # 16 of the others on each
    ranked = skewed(of).layers[1].masses
    core = set(made.parts[0].experts[1]) & set(made.parts[1].experts[1])
    assert core == set(sorted(range(64), key=lambda one: -ranked[one])[:32])


def test_without_room_for_two_of_each_there_is_one_of_each() -> None:
    of = layout(used=2)
    made = found(assign(skewed(of), 3, layout=of, keep=32, min_mass=0))  # two of each would take 43
    assert made.overlap == 1
    assert found(assign(skewed(of), 3, layout=of, keep=48, min_mass=0.85)).overlap == 2


@pytest.mark.parametrize("floor", [0.1, 0.85, 0.99])
def test_two_of_each_are_no_reason_for_worse_answers(floor: float) -> None:
    """Whatever floor a node was told, it comes to the same."""
    of = layout()
    ranking = uniform(MODEL, of)  # two of each leave 16 for the core of 48
    made = assign(ranking, 3, layout=of, keep=48, min_mass=floor)
    assert isinstance(made, Impossible) == (floor > 0.75)
    of = layout(16, 2)
    made = assign(skewed(of, 0.7), 3, layout=of, keep=11, min_mass=min(floor, 0.9))
    assert found(made).overlap == 1
    assert found(assign(skewed(of, 0.7), 3, layout=of, keep=14, min_mass=floor)).overlap == 2


def test_least_mass_is_refused_with_numbers_and_advice() -> None:
    of = layout()
    why = refused(assign(uniform(MODEL, of), 4, layout=of, keep=32, min_mass=0.85))
    assert (why.mass, why.keep) == (0.5, 32)
    assert why.why == (
        "at 4 nodes each would keep 0.50 of the routing with 32 of 64 experts, less than 0.85: "
        "give each memory for 64 of 64 experts, 0.64 GB beside all else, with which it would "
        "keep 1.00, or accept worse answers (--min-mass)"
    )


def test_mass_just_below_the_floor_is_not_shown_as_the_floor() -> None:
    of = layout(64, layers=1)
    masses = (0.6998 / 32,) * 32 + (
        0.3002 / 32,
    ) * 32  # the first on both, half of the rest on each
    ranking = replace(uniform(MODEL, of), tokens=1, layers=(
        LayerRanking(layer=0, counts=(1,) * 64, masses=masses),))  # fmt: skip
    why = refused(assign(ranking, 2, layout=of, keep=48, min_mass=0.85)).why
    assert "would keep 0.84 of the routing with 48 of 64 experts, less than 0.85" in why


@pytest.mark.parametrize(("parts", "room", "words"), [
    (1, GB // 2, "1 node cannot have every expert .* with 0.50 GB .* 64 of 64 experts, 0.64 GB"),
    (4, GB // 10, "4 nodes cannot have every expert .* with 0.10 GB .* 16 of 64 experts, 0.16 GB"),
])  # fmt: skip
def test_nodes_that_hold_too_little_together_are_told_what_they_need(
    parts: int, room: int, words: str
) -> None:
    of = layout()
    why = refused(assign(skewed(of), parts, layout=of, room=[room] * parts))
    assert why.mass == 0
    assert re.search(words, why.why)


def test_number_that_a_part_cannot_have_is_refused_with_those_it_may() -> None:
    of = layout()
    assert "may have 16, 32, 48, 64" in refused(assign(skewed(of), 2, layout=of, keep=20)).why
    assert "with 16 of 64" in refused(assign(skewed(of), 2, layout=of, keep=16)).why


@pytest.mark.parametrize("parts", [0, MAX_PARTS + 1])
def test_number_of_nodes_has_bounds(parts: int) -> None:
    assert f"1 to {MAX_PARTS}" in refused(assign(skewed(layout()), parts, layout=layout())).why


def test_ranking_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="analyze"):
        assign(skewed(layout()), 2, layout=layout(128))


@pytest.mark.parametrize(("of", "allowed"), [
    (layout(8, 2), tuple(range(2, 9))),
    (layout(16, 1), tuple(range(2, 17))),
    (layout(60, 4), (16, 32, 48, 60)),
    (layout(128, 40), (48, 64, 80, 96, 112, 128)),
    (layout(256, 8, 1, 8, 4), tuple(range(16, 257, 16))),
    (layout(256, 8, 1, 8, 1), tuple(range(64, 257, 16))),
    (layout(16, 4, 1, 4, 2), (8, 12, 16)),
    (layout(96, 4, 1, 3, 1), (48, 96)),
])  # fmt: skip
def test_parts_come_in_sizes_that_keep_sums_the_same(of: Layout, allowed: tuple[int, ...]) -> None:
    assert steps(of) == allowed
    assert fewest(of) <= allowed[0]
