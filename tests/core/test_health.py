"""Who is pinged when, and who is suspect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.health import (
    DOUBTED_SILENCE,
    FORGET,
    FRESH,
    HINTS_SENT,
    HINTS_TAKEN,
    HOPELESS,
    IDLE_SILENCE,
    IN_USE,
    LONGEST_WAIT,
    OTHERS_EVERY,
    PING_EVERY,
    ROUND,
    SILENCE,
    TICK,
    Action,
    Actions,
    Down,
    Drop,
    Health,
    Ping,
    Pong,
    Probe,
    Revive,
    Suspect,
)
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import RemoteError

A, B = PeerId("a"), PeerId("b")


class World:
    """Peers that answer pings after a while, and those that do not."""

    def __init__(self, *peers: PeerId, seed: int = 1) -> None:
        self.health = Health(Random(seed))
        self.now = 1000.0
        self.silent: set[PeerId] = set()
        self.delay: Callable[[], float] = lambda: 0.05
        self.done: list[tuple[float, Action]] = []
        self.pongs: list[tuple[float, PeerId, float]] = []
        self.health.tick(self.now)
        for peer in peers:
            self.take(self.health.met(peer, self.now))

    def take(self, actions: Actions) -> None:
        for action in actions:
            self.done.append((self.now, action))
            if isinstance(action, Probe) and action.peer not in self.silent:
                took = self.delay()
                self.pongs.append((self.now + took, action.peer, took))

    def run(self, seconds: float, tick: float = TICK) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step(tick)

    def step(self, tick: float = TICK) -> None:
        self.now += tick
        due = sorted(pong for pong in self.pongs if pong[0] <= self.now)
        self.pongs = [pong for pong in self.pongs if pong[0] > self.now]
        for at, peer, took in due:
            if peer not in self.silent:
                self.take(self.health.ponged(peer, took, at))
        self.take(self.health.tick(self.now))

    def of(self, kind: type[Action], peer: PeerId | None = None) -> list[float]:
        return [
            at
            for at, action in self.done
            if isinstance(action, kind) and peer in (None, action.peer)
        ]


def test_peer_in_use_is_pinged_every_second() -> None:
    world = World(A, B)
    world.health.begun(A, world.now)
    world.health.ended(A, world.now)
    world.run(IN_USE)
    assert IN_USE / PING_EVERY - 3 <= len(world.of(Probe, A)) <= IN_USE / PING_EVERY + 1
    before = len(world.of(Probe, A))
    world.run(IN_USE)
    assert len(world.of(Probe, A)) - before <= IN_USE / OTHERS_EVERY


def test_long_answer_keeps_its_peer_in_use() -> None:
    world = World(A)
    world.health.begun(A, world.now)
    world.run(10 * IN_USE)
    assert len(world.of(Probe, A)) >= 10 * IN_USE / PING_EVERY - 3


def test_idle_node_pings_one_of_the_others_now_and_then() -> None:
    world = World(*(PeerId(str(place)) for place in range(12)))
    world.run(300)
    assert len(world.of(Probe)) == pytest.approx(300 / OTHERS_EVERY, abs=2)
    assert set(Counter(str(a.peer) for _, a in world.done).values()) <= {10, 11, 9}


def test_many_connections_are_all_pinged_within_a_round() -> None:
    peers = [PeerId(str(place)) for place in range(100)]
    world = World(*peers)
    world.run(2 * ROUND)
    assert {action.peer for _, action in world.done} == set(peers)


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=30), st.randoms())
def test_peer_that_answers_is_never_suspect(used: list[str], rng: Random) -> None:
    world = World(*(PeerId(name) for name in "abc"))
    world.delay = lambda: rng.random() * 0.9
    for name in used:
        world.health.begun(PeerId(name), world.now)
        world.run(rng.random() * 5, tick=0.3 + rng.random() * 0.3)
        world.health.ended(PeerId(name), world.now)
        world.take(world.health.hinted(PeerId(rng.choice("abc")), PeerId("c"), world.now))
    world.run(60)
    assert not world.of(Suspect)


@given(st.floats(0, 100), st.floats(0, 5), st.integers(0, 9))
def test_silent_peer_in_use_is_suspect_soon(before: float, into: float, seed: int) -> None:
    world = World(A, B, seed=seed)
    world.run(before)
    world.health.begun(A, world.now)
    world.run(into)
    world.silent.add(A)
    start = world.now
    world.run(10)
    assert world.of(Suspect, A)[0] - start <= SILENCE + 2 * TICK
    assert not world.of(Suspect, B)


def test_silent_idle_peer_is_suspect_after_its_turn() -> None:
    world = World(A)
    world.silent.add(A)
    start = world.now
    world.run(30)
    assert world.of(Suspect, A)[0] - start <= OTHERS_EVERY + IDLE_SILENCE + 2 * TICK


def test_frames_are_signs_of_life() -> None:
    world = World(A)
    world.health.begun(A, world.now)
    world.silent.add(A)  # its pongs are late, its answer is not
    for _ in range(100):
        world.step()
        assert world.health.alive(A, world.now) == ()
    assert not world.of(Suspect)
    world.run(SILENCE + 2 * TICK)
    assert world.of(Suspect, A)


def test_signs_of_a_stranger_mean_nothing() -> None:
    health = Health(Random(1))
    assert health.alive(A, 0.0) == health.ponged(A, 0.1, 0.0) == ()
    assert health.parted(A, "it left", 0.0) == health.failed(A, "no", 0.0) == ()
    assert health.doubted(A, 0.0) == ()
    health.ended(A, 0.0)
    health.forget(A)
    assert health.rtt(A) is None
    assert not health.is_suspect(A)
    assert not health.is_fresh(A, 0.0)


def test_closed_connection_is_suspect_at_once_and_told() -> None:
    world = World(A)
    assert world.health.parted(A, "it was killed", world.now) == (
        Suspect(A, "it was killed", is_told=True),
    )
    assert world.health.parted(A, "again", world.now) == ()
    assert world.health.is_suspect(A)


def test_client_that_leaves_is_forgotten() -> None:
    world = World()
    world.health.met(A, world.now, is_member=False)
    assert world.health.parted(A, "it left", world.now) == ()
    world.run(100)
    assert not world.done


def test_suspect_is_pinged_on_ever_less_often() -> None:
    world = World(A)
    world.silent.add(A)
    world.take(world.health.parted(A, "it was killed", world.now))
    world.run(600)
    gaps = [after - before for before, after in _pairs(world.of(Probe, A))]
    assert gaps[0] <= 1.5
    assert max(gaps) <= LONGEST_WAIT + TICK
    assert 600 / LONGEST_WAIT <= len(gaps) <= 2 * 600 / LONGEST_WAIT + 10


def _pairs(times: list[float]) -> list[tuple[float, float]]:
    return list(pairwise(times))


def test_suspect_that_answers_is_trusted_again() -> None:
    world = World(A)
    world.silent.add(A)
    world.take(world.health.failed(A, "no", world.now))
    world.run(5)
    world.silent.clear()
    world.run(5)
    assert len(world.of(Revive, A)) == 1
    assert world.health.is_fresh(A, world.now)


def test_hopeless_connection_is_dropped_once() -> None:
    world = World(A)
    world.health.begun(A, world.now)
    world.silent.add(A)
    start = world.now
    world.run(60)
    (dropped,) = world.of(Drop, A)
    assert HOPELESS <= dropped - start <= HOPELESS + 4
    assert world.health.parted(A, "the connection closed", world.now) == ()


def test_suspect_that_nobody_hears_of_is_forgotten() -> None:
    world = World(A)
    world.silent.add(A)
    world.take(world.health.parted(A, "it was killed", world.now))
    world.run(FORGET / 2)
    world.health.heard_of(A, world.now)
    world.run(FORGET / 2 + 10)
    assert world.health.is_suspect(A)
    world.run(FORGET)
    assert not world.health.is_suspect(A)


def test_suspect_that_announces_itself_is_tried_at_once() -> None:
    world = World(A)
    world.silent.add(A)
    world.take(world.health.parted(A, "it was killed", world.now))
    world.run(300)
    world.silent.clear()
    world.health.heard_of(A, world.now)
    world.health.heard_of(B, world.now)
    world.run(1.5)
    assert world.of(Revive, A)


def test_lapsed_suspect_is_forgotten_but_no_connected_peer() -> None:
    world = World(A, B)
    world.health.parted(A, "it was killed", world.now)
    world.health.failed(B, "no", world.now)
    world.health.forget(A)
    world.health.forget(B)
    assert not world.health.is_suspect(A)
    assert world.health.is_suspect(B)


def test_hint_is_checked_and_not_believed() -> None:
    world = World(A, B)
    world.run(2)
    world.take(world.health.hinted(A, B, world.now))
    assert world.done[-1] == (world.now, Probe(A))
    assert not world.health.is_suspect(A)
    assert world.health.hinted(A, B, world.now) == ()  # it is being asked already
    world.run(10)
    assert not world.of(Suspect)


def test_hint_that_is_true_shortens_the_wait() -> None:
    world = World(A, B)
    world.run(2)
    world.silent.add(A)
    start = world.now
    world.take(world.health.hinted(A, B, world.now))
    world.run(10)
    assert world.of(Suspect, A)[0] - start <= DOUBTED_SILENCE + 2 * TICK


def test_hint_of_who_was_just_heard_costs_nothing() -> None:
    world = World(A, B)
    assert world.health.hinted(A, B, world.now) == ()


def test_hints_of_one_peer_are_limited() -> None:
    peers = [PeerId(str(place)) for place in range(100)]
    world = World(*peers)
    world.now += 1
    hinted = [world.health.hinted(peer, B, world.now) for peer in peers]
    assert sum(map(len, hinted)) == HINTS_TAKEN


def test_suspicions_are_told_to_few_when_many_are_suspect() -> None:
    peers = [PeerId(str(place)) for place in range(100)]
    world = World(*peers)
    for peer in peers:
        world.take(world.health.parted(peer, "all is lost", world.now))
    told = [a for _, a in world.done if isinstance(a, Suspect) and a.is_told]
    assert len(told) == HINTS_SENT


def test_doubt_about_one_that_is_not_connected_makes_it_stale() -> None:
    world = World(A)
    world.health.begun(B, world.now)
    world.health.alive(B, world.now)
    assert world.health.is_fresh(B, world.now)
    assert world.health.doubted(B, world.now) == ()
    assert not world.health.is_fresh(B, world.now)


def test_sign_of_life_goes_stale() -> None:
    world = World(A)
    assert world.health.is_fresh(A, world.now)
    for _ in range(int(FRESH / TICK)):
        world.now += TICK
        world.health.tick(world.now)
    assert not world.health.is_fresh(A, world.now)


def test_own_stall_makes_nobody_suspect() -> None:
    world = World(A, B)
    world.health.begun(A, world.now)
    world.run(20)
    world.step(tick=3600.0)
    world.run(60)
    assert not world.of(Suspect)


def test_stall_in_the_middle_of_a_silence_adds_nothing_to_it() -> None:
    world = World(A)
    world.health.begun(A, world.now)
    world.run(20)
    world.silent.add(A)
    world.run(1)
    world.step(tick=3600.0)
    assert not world.of(Suspect)
    world.run(SILENCE + 2 * TICK)
    assert world.of(Suspect)


def test_what_is_heard_right_after_a_stall_counts_from_then() -> None:
    world = World(A)
    world.now += 3600
    world.health.alive(A, world.now)
    assert world.health.is_fresh(A, world.now)
    world.health.tick(world.now)
    assert world.health.is_fresh(A, world.now)


@given(st.sets(st.integers(0, 49), max_size=10), st.integers(0, 9))
def test_work_is_bounded(used: set[int], seed: int) -> None:
    world = World(*(PeerId(str(place)) for place in range(50)), seed=seed)
    for place in used:
        world.health.begun(PeerId(str(place)), world.now)
    world.run(30)
    most = 30 * (len(used) / PING_EVERY + max(1 / OTHERS_EVERY, 50 / ROUND)) + len(used) + 2
    assert len(world.done) <= most


def test_nothing_is_kept_of_who_was_used_and_left() -> None:
    world = World()
    for place in range(100):
        world.health.begun(PeerId(str(place)), world.now)
        world.health.ended(PeerId(str(place)), world.now)
    world.run(2 * IN_USE)
    assert not world.health._watched
    assert not world.health._close


def test_unasked_ping_that_stays_unanswered_makes_suspect() -> None:
    world = World()
    world.health.probing(A, world.now)
    world.run(IDLE_SILENCE + 2 * TICK)
    assert world.of(Suspect, A)


def test_round_trip_is_smoothed() -> None:
    world = World(A)
    world.health.ponged(A, 0.1, world.now)
    assert world.health.rtt(A) == pytest.approx(0.1)
    world.health.ponged(A, 0.2, world.now)
    assert world.health.rtt(A) == pytest.approx(0.125)


def test_silent_connection_that_answers_while_it_is_dropped_is_still_known() -> None:
    world = World(A)
    world.health.failed(A, "it does not answer", world.now)
    world.silent.add(A)
    world.run(HOPELESS + SILENCE + 2 * TICK)
    assert world.of(Drop, A)
    assert world.health.is_connected(A)
    world.silent.clear()
    world.take(world.health.alive(A, world.now))
    world.run(2 * ROUND)  # each look at the others goes through it
    world.take(world.health.parted(A, "it was dropped", world.now))
    assert not world.health.is_connected(A)
    assert world.health.is_suspect(A)


@pytest.mark.parametrize("message", [Ping(number=1), Pong(number=1), Down(peer=A)])
def test_messages_survive_the_wire(message: object) -> None:
    assert decode(encode(message), Ping | Pong | Down) == message


@pytest.mark.parametrize("bad", [{"type": "ping", "number": -1}, {"type": "down", "peer": ""}])
def test_messages_out_of_bounds_are_refused(bad: object) -> None:
    with pytest.raises(RemoteError):
        decode(encode(bad), Ping | Pong | Down)


def test_nobody_else_is_pinged_where_all_are_in_use() -> None:
    world = World(A, B)
    world.health.begun(A, world.now)
    world.health.begun(B, world.now)
    world.run(10)
    assert len(world.done) <= 2 * (10 / PING_EVERY + 1)


def test_silent_client_is_dropped_and_nobody_is_told() -> None:
    world = World()
    world.health.met(A, world.now, is_member=False)
    world.silent.add(A)
    world.run(60)
    assert not world.of(Suspect)
    assert len(world.of(Drop, A)) == 1
    assert world.health.alive(A, world.now) == ()
