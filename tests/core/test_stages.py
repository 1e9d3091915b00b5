"""Which node holds which layers."""

from collections.abc import Sequence
from dataclasses import replace as changed
from itertools import combinations, pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.costs import PROCESS, Layer, StageModel, law
from p2p_mesh.core.cuts import Cuts
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.plans import delays
from p2p_mesh.core.sites import Site
from p2p_mesh.core.stages import Impossible, Place, Plan, Stage, Topology, plan, replace

MB = 10**6
DIGEST = "a" * 64


def model(count: int = 8, size: int = 90 * MB, **more: object) -> StageModel:
    layers = (Layer(size),) * count
    return StageModel("m", DIGEST, layers, **({"context": 256} | more))  # type: ignore[arg-type]


def room(layers: float) -> int:
    """Bytes in which a stage of so many layers of `model` fits, and little more."""
    return PROCESS + 256 * 2048 + int(layers * 100 * MB) + 2


def node(name: str, layers: float = 99, **more: object) -> Site:
    values: dict[str, object] = {"round_trip": 0.002, "bandwidth": 1e9}
    return Site(PeerId(name), name, free=room(layers), **(values | more))  # type: ignore[arg-type]


def me(layers: float = 99, **more: object) -> Site:
    return node("me", layers, is_here=True, **({"round_trip": 0.0} | more))


def made(found: Plan | Impossible) -> Plan:
    assert isinstance(found, Plan), found
    return found


def refused(found: Plan | Place | Impossible) -> Impossible:
    assert isinstance(found, Impossible)
    return found


def held(found: Plan | Impossible) -> list[tuple[str, int, int]]:
    return [(one.name, one.start, one.end) for one in made(found).places]


def test_model_that_fits_is_not_cut() -> None:
    assert held(plan(model(), [node("bob"), me(8)])) == [("me", 0, 8)]


def test_split_cuts_what_would_fit() -> None:
    assert held(plan(model(), [me(), node("bob")], split=True)) == [("me", 0, 4), ("bob", 4, 8)]


def test_model_that_fits_nowhere_is_cut_over_as_few_nodes_as_hold_it() -> None:
    nodes = [me(3), node("a", 2), node("b", 5), node("c", 2), node("d", 2)]
    found = made(plan(model(), nodes))
    assert held(found) == [("me", 0, 3), ("b", 3, 8)]
    assert [one.name for one in found.spare] == ["a", "c", "d"]


def test_this_node_holds_the_first_stage_though_others_would_be_fewer() -> None:
    nodes = [me(1), node("a", 4), node("b", 4)]
    assert held(plan(model(), nodes))[0][0] == "me"


@pytest.mark.parametrize("more", [{}, {"first_bytes": 200 * MB}])
def test_node_that_can_hold_no_first_stage_leaves_it_to_others(more: dict[str, int]) -> None:
    found = made(plan(model(**more), [me(1 if more else 0), node("a", 5.5), node("b", 5.5)]))
    assert {one.name for one in found.places} == {"a", "b"}
    assert [one.name for one in found.excluded] == ["me"]
    assert "first stage" in found.excluded[0].reason or not more


def test_near_nodes_come_first() -> None:
    nodes = [me(4), node("far", 4, round_trip=0.06), node("near", 4, round_trip=0.001)]
    assert [one[0] for one in held(plan(model(), nodes))] == ["me", "near"]


def test_fast_nodes_come_first_where_the_way_is_the_same() -> None:
    nodes = [me(4), node("slow", 4), node("fast", 4, bandwidth=9e9)]
    assert [one[0] for one in held(plan(model(), nodes))] == ["me", "fast"]


def test_who_is_left_out_is_told_why() -> None:
    nodes = [
        me(4), node("ok", 4), node("far", round_trip=0.1), node("small", 0.5),
        node("gone", is_suspect=True), node("old", backends=(), version="0.1"),
        node("other", backends=("llama_cpp",)), node("asker", role="client"),
    ]  # fmt: skip
    found = made(plan(model(), nodes))
    reasons = {one.name: one.reason for one in found.excluded}
    assert set(reasons) == {"far", "small", "gone", "old", "other", "asker"}
    assert "100 ms is over the 80 ms" in reasons["far"]
    assert "0.05 GB are missing" in reasons["small"]


def test_cap_on_the_round_trip_can_be_moved() -> None:
    nodes = [me(4), node("far", 4, round_trip=0.1)]
    assert isinstance(plan(model(), nodes), Impossible)
    assert isinstance(plan(model(), nodes, most_round_trip=0.2), Plan)


def test_what_is_missing_is_told_in_gigabytes() -> None:
    found = refused(plan(model(), [me(3), node("bob", 3)]))
    assert "are missing" in found.reason
    # two processes and two sets of buffers count as one here: it is the least that would help
    assert found.missing == pytest.approx(2 * 100 * MB - PROCESS, rel=0.05)
    assert "shorter context" in str(found)


def test_alone_it_is_told_why_nobody_helps() -> None:
    found = refused(plan(model(), [me(3), node("bob", 0.5)]))
    assert "only me can" in found.reason
    assert "bob: " in found.advice
    assert found.missing > 0
    nobody = refused(plan(model(), [me(0.5)]))
    assert "no node of this mesh can" in nobody.reason


def test_memory_that_lies_badly_is_told_apart() -> None:
    found = refused(plan(model(), [me(1.9), *(node(name, 1.9) for name in "abcde")]))
    assert "cannot be cut so that each stage fits" in found.reason
    assert found.missing == 0


def test_family_that_cannot_be_cut_is_refused_by_its_reason() -> None:
    rules = model(obstacle=lambda start, end: "it loops" if (start, end) != (0, 8) else "")
    found = refused(plan(rules, [me(4), node("bob", 4)]))
    assert "it loops" in found.reason
    assert held(plan(rules, [me(8), node("bob", 8)])) == [("me", 0, 8)]
    assert "one layer" in refused(plan(model(1), [me(), node("bob")], split=True)).reason


def test_cut_follows_the_family() -> None:
    pattern = model(obstacle=lambda start, end: "" if start % 6 == 0 else "in a pattern")
    assert held(plan(pattern, [me(6), node("bob", 4)])) == [("me", 0, 6), ("bob", 6, 8)]


def test_many_nodes_do_not_take_long() -> None:
    nodes = [me(9), *(node(f"n{number}", 9, round_trip=number / 1e4) for number in range(300))]
    found = made(plan(model(80, first_bytes=100 * MB, last_bytes=100 * MB), nodes))
    assert len(found.places) == 10
    assert {one.name for one in found.spare} >= {"n50", "n299"}


def test_large_nodes_are_found_among_many_near_ones() -> None:
    near = [node(f"n{number}", 1, round_trip=0.001) for number in range(100)]
    far = [node(f"f{number}", 20, round_trip=0.01) for number in range(3)]
    found = made(plan(model(80), [me(20), *near, *far]))
    assert [one.name[0] for one in found.places] == ["m", "f", "f", "f"]


# Laws

NODES = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 100), st.integers(1, 4)), min_size=1, max_size=4
)
LAYERS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


def drawn(layers: list[int], nodes: list[tuple[int, int, int]]) -> tuple[StageModel, list[Site]]:
    found = StageModel(
        "m", DIGEST, tuple(Layer(size * 90 * MB) for size in layers), context=256,
        last_bytes=45 * MB, obstacle=lambda start, end: "no" if 2 in (start, end) else "",
    )  # fmt: skip
    sites = [
        node(
            f"n{number}", free, round_trip=trip / 1e3 if number else 0.0, bandwidth=speed * 1e9,
            is_here=number == 0,
        )
        for number, (free, trip, speed) in enumerate(nodes)
    ]  # fmt: skip
    return found, sites


def possible(wanted: StageModel, order: Sequence[Site]) -> bool:
    """Whether there is any cut, looked for in the simplest way."""
    return any(
        all(
            not wanted.obstacle(*one) and wanted.need(*one) <= site.free
            for one, site in zip(pairwise((0, *inner, wanted.total)), order, strict=True)
        )
        for inner in combinations(range(1, wanted.total), len(order) - 1)
    )


@given(LAYERS, NODES, st.booleans())
def test_plan_covers_all_layers_fits_and_is_as_short_as_can_be(
    layers: list[int], nodes: list[tuple[int, int, int]], split: bool
) -> None:
    wanted, sites = drawn(layers, nodes)
    found = plan(wanted, sites, split=split)
    near = [one for one in sites if one.distance <= 0.08]
    first = any(
        not wanted.obstacle(0, end) and wanted.need(0, end) <= sites[0].free
        for end in range(1, wanted.total)
    )
    orders = (
        order
        for count in range(2 if split else 1, len(near) + 1)
        for order in permutations(near, count)
        if (order[0].is_here if first or count == 1 else sites[0] not in order)
    )
    short = next((order for order in orders if possible(wanted, order)), None)
    if isinstance(found, Impossible):
        assert short is None
        assert found.reason
        return
    assert short is not None
    assert len(found.places) == len(short)
    ends = [(one.start, one.end) for one in found.places]
    assert ends == list(pairwise((0, *(end for _, end in ends))))
    assert ends[-1][1] == wanted.total
    assert len({one.peer for one in found.places}) == len(found.places)
    for one in found.places:
        assert one.memory_bytes == wanted.need(one.start, one.end) <= one.free_bytes
        assert not wanted.obstacle(one.start, one.end)
        assert one.site.distance <= 0.08
    placed = {one.peer for one in found.places} | {one.peer for one in found.spare}
    assert placed | {one.peer for one in found.excluded} == {one.peer for one in sites}


@given(LAYERS, NODES)
def test_no_other_nodes_and_no_other_cut_of_as_many_stages_cost_less(
    layers: list[int], nodes: list[tuple[int, int, int]]
) -> None:
    wanted, sites = drawn(layers, nodes)
    found = plan(wanted, sites, split=True)
    if isinstance(found, Impossible) or not found.places[0].is_here:
        return
    cost = found.seconds + max(one.seconds for one in found.places)
    near, cuts = [one for one in sites if one.distance <= 0.08], Cuts(wanted)
    for order in permutations(near, len(found.places)):
        best = cuts.best(order) if order[0].is_here else None
        if best is not None:
            assert law(best.total, delays(order, 0)) + best.longest >= cost - 1e-9


@given(LAYERS, NODES, st.randoms())
def test_order_of_the_nodes_changes_nothing(
    layers: list[int], nodes: list[tuple[int, int, int]], random: object
) -> None:
    wanted, sites = drawn(layers, nodes)
    mixed = list(sites)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = plan(wanted, sites, split=True), plan(wanted, mixed, split=True)
    assert isinstance(one, Plan) == isinstance(other, Plan)
    if isinstance(one, Plan):
        assert held(one) == held(other)


@given(LAYERS, NODES)
def test_plan_that_is_pinned_is_the_same_plan(
    layers: list[int], nodes: list[tuple[int, int, int]]
) -> None:
    wanted, sites = drawn(layers, nodes)
    found = plan(wanted, sites)
    if isinstance(found, Plan) and found.places[0].is_here:
        again = made(plan(wanted, sites, topology=found.topology()))
        assert again.places == found.places


# What somebody wrote


def pinned(*stages: tuple[str, int, int], name: str = "m", digest: str = DIGEST) -> Topology:
    return Topology(
        model=name, manifest_sha256=digest,
        stages=tuple(
            Stage(node=PeerId(one), layer_start=start, layer_end=end) for one, start, end in stages
        ),
    )  # fmt: skip


SITES = [me(), node("bob"), changed(node("x"), name="twin"), changed(node("y"), name="twin"),
         node("small", 3), node("far", round_trip=0.5)]  # fmt: skip


def test_topology_is_kept_though_another_plan_is_better() -> None:
    wanted = pinned(("me", 0, 1), ("y", 1, 2), ("bob", 2, 8))
    found = plan(model(), SITES, topology=wanted)
    assert [(one.peer, one.start, one.end) for one in made(found).places] == [
        ("me", 0, 1), ("y", 1, 2), ("bob", 2, 8),
    ]  # fmt: skip
    assert held(plan(model(), SITES, topology=pinned(("me", 0, 8)))) == [("me", 0, 8)]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        (pinned(("me", 0, 8), digest="b" * 64), "another package"),
        (pinned(("me", 0, 8), name="other"), "not for m"),
        (pinned(("me", 0, 4), ("bob", 4, 9)), "ends at layer 9, and the model has 8"),
        (pinned(("me", 0, 4), ("bob", 5, 8)), "must begin at 4"),
        (pinned(("bob", 0, 4), ("me", 4, 8)), "the first stage is that of"),
        (pinned(("me", 0, 4), ("me", 4, 8)), "named twice"),
        (pinned(("me", 0, 4), ("nobody", 4, 8)), "no node of this mesh that answers is nobody"),
        (pinned(("me", 0, 4), ("twin", 4, 8)), "2 nodes are called twin"),
        (pinned(("me", 0, 4), ("small", 4, 8)), "small: stage 1 takes"),
        (pinned(("me", 0, 4), ("far", 4, 8)), "500 ms is over"),
    ],
)
def test_topology_that_cannot_be_kept_fails_with_the_reason(topology: Topology, words: str) -> None:
    assert words in refused(plan(model(), SITES, topology=topology)).reason


@pytest.mark.parametrize(
    ("topology", "is_final"),
    [
        (pinned(("me", 0, 8), digest="b" * 64), True),
        (pinned(("me", 0, 8), name="other"), True),
        (pinned(("me", 0, 4), ("bob", 4, 7)), True),
        (pinned(("me", 0, 4), ("bob", 5, 8)), True),
        (pinned(("bob", 0, 4), ("me", 4, 8)), True),
        (pinned(("nobody", 0, 4), ("bob", 4, 8)), True),
        (pinned(("me", 0, 3), ("nobody", 3, 6), ("me", 6, 8)), True),
        (pinned(("me", 0, 3), ("nobody", 3, 6), ("bob", 6, 7), ("bob", 7, 8)), True),
        (pinned(("me", 0, 4), ("nobody", 4, 8)), False),
        (pinned(("me", 0, 4), ("twin", 4, 8)), False),
        (pinned(("me", 0, 4), ("small", 4, 8)), False),
        (pinned(("me", 0, 4), ("far", 4, 8)), False),
    ],
)
def test_what_no_node_can_mend_is_told_apart(topology: Topology, is_final: bool) -> None:
    assert refused(plan(model(), SITES, topology=topology)).is_final == is_final


def test_model_waits_for_memory_and_not_for_another_family() -> None:
    whole = model(obstacle=lambda start, end: "one piece" if end - start < 8 else "")
    assert refused(plan(whole, SITES, split=True)).is_final
    assert not refused(plan(model(), [me(3)], split=True)).is_final


def test_topology_cannot_cut_where_the_family_cannot() -> None:
    rules = model(obstacle=lambda start, _end: "in a pattern" if start % 2 else "")
    found = plan(rules, SITES, topology=pinned(("me", 0, 3), ("bob", 3, 8)))
    assert "in a pattern" in refused(found).reason


# A stage that is lost

NODES_OF_THREE = [me(3), node("a", 3), node("b", 3)]


def test_lost_stage_goes_to_a_node_that_holds_none() -> None:
    found = made(plan(model(), NODES_OF_THREE))
    lost = found.places[1]
    new = replace(found, 1, [me(3), *(one.site for one in found.places[2:]), node("c", 3)])
    assert isinstance(new, Place)
    assert (new.peer, new.start, new.end) == ("c", lost.start, lost.end)
    assert found.with_place(1, new).places[1] == new
    assert found.with_place(1, new).places[0] == found.places[0]


def test_node_that_had_it_comes_first_then_the_near_ones() -> None:
    found = made(plan(model(), NODES_OF_THREE))
    near, far = node("near", 3, round_trip=0.001), node("far", 3, round_trip=0.05)
    again = replace(found, 1, [far, near, found.places[1].site])
    assert isinstance(again, Place)
    assert again.peer == found.places[1].peer
    other = replace(found, 1, [far, near])
    assert isinstance(other, Place)
    assert other.peer == "near"


def test_no_node_for_it_is_told_with_the_reasons() -> None:
    found = made(plan(model(), NODES_OF_THREE))
    none = refused(replace(found, 2, [*NODES_OF_THREE[:2], node("small", 1)]))
    assert "no other node can take layers" in none.reason
    assert [one.name for one in none.excluded] == ["small"]
    assert "coordinates" in refused(replace(found, 0, [node("c")])).reason
