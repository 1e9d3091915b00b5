"""Who takes part, which part each has, and when a change of that counts."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshnode_expert_shards.participants import (
    APART,
    PATIENCE,
    QUIET,
    SETTLE,
    TRIES,
    Change,
    Division,
    Participant,
    Turn,
    _counts,
    divide,
    gathered,
    key,
    taking_part,
)

from p2p_mesh.core.experts.assignment import Impossible
from p2p_mesh.core.experts.layout import Layer, Layout, Sliced
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import Announcement, Held, Resources

MODEL, OTHER = Digest("a" * 64), Digest("b" * 64)
A, B, C, D = (PeerId(name) for name in "abcd")
EXPERTS, USED, LAYERS, SIZE = 16, 2, 2, 100

LAYOUT = Layout(
    EXPERTS, USED,
    tuple(Layer(n, USED, (Sliced(f"blk.{n}.ffn_up_exps.weight", 0, SIZE),)) for n in range(LAYERS)),
)  # fmt: skip
EACH = LAYOUT.bytes_per_expert


def ranking(skew: int = 0) -> Ranking:
    """Each expert but the last few is used as much; with `skew`, the first ones more."""
    counts = tuple(10 + skew * max(0, 8 - expert) for expert in range(EXPERTS))
    layers = tuple(
        LayerRanking(layer=n, counts=counts, masses=tuple(map(float, counts)))
        for n in range(LAYERS)
    )
    return Ranking(model=MODEL, tokens=1000, experts=EXPERTS, used=USED, layers=layers)


RANKING = ranking()


def some(*rooms: int) -> tuple[Participant, ...]:
    """Nodes with room for so many experts of each layer."""
    names = (A, B, C, D)
    return tuple(Participant(peer, room * EACH) for peer, room in zip(names, rooms, strict=False))


def announced(*held: Held) -> Announcement:
    resources = Resources(memory_total=1, memory_free=1, threads=1)
    return Announcement(sequence=(1, 1), issued_at=0, lifetime=60, name="n", version="0",
                        resources=resources, held=held)  # fmt: skip


def held(digest: Digest | None, shards: int) -> Held:
    return Held(id=ModelId("m"), digest=digest, shards=shards)


def divided(*rooms: int, min_mass: float = 0.0, of: Ranking = RANKING) -> Division:
    found = divide(of, LAYOUT, some(*rooms), min_mass=min_mass)
    assert isinstance(found, Division)
    return found


def test_peers_that_announce_shards_of_the_model_take_part() -> None:
    peers = [
        (A, announced(held(MODEL, 5))),
        (B, announced(held(MODEL, 0), held(OTHER, 9))),
        (C, announced(held(None, 7))),
        (D, announced(held(OTHER, 3), held(MODEL, 4))),
    ]
    assert taking_part(peers, {MODEL}) == (Participant(A, 5), Participant(D, 4))
    assert len(taking_part(peers, {MODEL, OTHER})) == 4


def test_each_takes_part_once_and_in_order() -> None:
    found = gathered([Participant(B, 1), Participant(A, 5), Participant(A, 7), Participant(A, 2)])
    assert found == (Participant(A, 7), Participant(B, 1))
    assert gathered([]) == ()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, EXPERTS), min_size=1, max_size=4), st.integers(0, 3), st.randoms())
def test_all_nodes_come_to_the_same_parts(rooms: list[int], skew: int, rng: Random) -> None:
    people = list(some(*rooms))
    first = divide(ranking(skew), LAYOUT, people, min_mass=0.3)
    rng.shuffle(people)
    assert divide(ranking(skew), LAYOUT, people, min_mass=0.3) == first
    if isinstance(first, Division):
        peers = [one.peer for one in first.participants]
        assert peers == sorted(peers)
        assert first.assignment.mass >= 0.3
        everything = set(range(EXPERTS))
        for layer in range(LAYERS):
            parts = first.assignment.parts
            assert set().union(*(part.experts[layer] for part in parts)) == everything
        assert not first.leaves_holes(peers)
        assert first.assignment.keep * EACH <= min(one.room for one in first.participants)


def test_each_node_finds_its_own_part() -> None:
    found = divided(8, 8)
    assert [found.number(peer) for peer in (A, B, C)] == [0, 1, None]
    assert found.part(A) == found.assignment.parts[0] != found.part(B)
    assert found.part(C) is None


def test_who_has_too_little_room_is_left_out_and_the_others_go_on() -> None:
    assert [one.peer for one in divided(16, 1, 16).participants] == [A, C]
    assert [one.peer for one in divided(8, 8, 8).participants] == [A, B, C]
    assert [one.peer for one in divided(16, 8, 2, min_mass=0.9).participants] == [A]


def test_many_sizes_are_tried_in_few_steps() -> None:
    people = [Participant(PeerId(f"{number:02}"), EACH * 16 - number) for number in range(40)]
    counts = _counts(people)
    assert (len(counts), counts[0], counts[-1]) == (TRIES, 40, 1)
    assert list(counts) == sorted(counts, reverse=True)
    assert _counts(people[:3]) == [3, 2, 1]
    assert _counts(some(8, 8, 8)) == [3]


def test_no_parts_at_all_are_explained() -> None:
    found = divide(RANKING, LAYOUT, some(4, 4), min_mass=0.85)
    assert isinstance(found, Impossible)
    assert "2 nodes" in found.why
    none = divide(RANKING, LAYOUT, (), min_mass=0.85)
    assert isinstance(none, Impossible)
    assert none.why


def test_experts_that_only_the_lost_had_leave_holes() -> None:
    halves = divided(8, 8)
    assert halves.leaves_holes({A})
    assert halves.leaves_holes(())
    assert not halves.leaves_holes({A, B, C})
    assert not divided(16, 16).leaves_holes({B})


def test_name_of_a_shard_tells_apart_what_is_not_the_same() -> None:
    one, other = divided(8, 8).assignment.parts
    names = {key("m", one, 0, 2), key("m", other, 0, 2), key("m", one, 1, 2), key("m", one, 0, 3),
             key("n", one, 0, 2)}  # fmt: skip
    assert len(names) == 5
    assert key("m", one, 0, 2) == key("m", divided(8, 8).assignment.parts[0], 0, 2)


def test_change_counts_when_it_has_lasted() -> None:
    change = Change(some(8, 8), now=0)
    assert change.settled(1000) is None
    change.see(some(8, 8, 8), now=10)
    assert change.settled(10 + SETTLE - 1) is None
    change.see(some(8, 8, 8), now=20)
    assert change.settled(10 + SETTLE) == some(8, 8, 8)


def test_node_that_comes_back_in_time_changes_nothing() -> None:
    change = Change(some(8, 8), now=0)
    change.see(some(8), now=10)
    change.see(some(8, 8), now=30)
    assert change.settled(1000) is None
    change.see(some(8), now=1000)
    assert change.settled(1000 + SETTLE - 1) is None


def test_another_change_begins_anew() -> None:
    change = Change(some(8, 8), now=0)
    change.see(some(8), now=10)
    change.see(some(8, 8, 8), now=50)
    assert change.settled(10 + SETTLE) is None
    assert change.settled(50 + SETTLE) == some(8, 8, 8)


def test_change_that_made_no_difference_is_settled_once() -> None:
    change = Change(some(8, 8), now=0)
    change.see(some(8, 8, 8), now=0)
    change.accept(some(8, 8, 8))
    assert change.settled(1000) is None
    change.see(some(8, 8), now=1000)
    assert change.settled(1000 + SETTLE) == some(8, 8)


def test_node_goes_over_when_it_is_quiet() -> None:
    turn = Turn(100, 0, is_urgent=False)
    assert not turn.has_come(99, is_busy=False, idle_since=0)
    assert turn.has_come(100, is_busy=False, idle_since=100 - QUIET)
    assert not turn.has_come(100, is_busy=False, idle_since=101 - QUIET)
    assert not turn.has_come(10_000, is_busy=True, idle_since=0)


def test_missing_experts_wait_for_answers_and_not_for_ever() -> None:
    turn = Turn(100, 0, is_urgent=True)
    assert turn.has_come(100, is_busy=False, idle_since=100)
    assert not turn.has_come(100, is_busy=True, idle_since=0)
    assert turn.has_come(100 + PATIENCE, is_busy=True, idle_since=0)


@pytest.mark.parametrize("is_urgent", [True, False])
def test_nodes_go_over_one_after_the_other(is_urgent: bool) -> None:
    """Else all would load at the same time, and none would answer."""

    def moment(number: int) -> int:
        turn = Turn(0, number, is_urgent=is_urgent)
        return next(now for now in range(1000) if turn.has_come(now, is_busy=False, idle_since=-99))

    assert all(after - before >= APART for before, after in pairwise(map(moment, range(4))))
