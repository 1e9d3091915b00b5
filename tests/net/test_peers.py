"""Whom a node connects to; pure of libp2p, with a connect that only counts."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
import trio

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.errors import Refused, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.peers import ENOUGH, MAX_LOST, TOGETHER, Peers

Clock = trio.testing.MockClock
US = peer_id(bytes(32))


def name(place: int) -> PeerId:
    return peer_id(bytes([place + 1] * 32))


class World:
    """Peers that answer, and those that do not."""

    def __init__(self, *up: PeerId, seeds: Sequence[str] = ()) -> None:
        self.up = set(up)
        self.members: dict[PeerId, Member] = {}
        self.tries: list[tuple[float, PeerId, tuple[str, ...]]] = []
        self.entries: list[Entry] = []
        self.error: type[Exception] = Unavailable
        journal = Journal(self.entries.append)
        self.peers = Peers(US, seeds, self.members, self.connect, journal=journal, rng=Random(1))

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        self.tries.append((trio.current_time(), peer, tuple(addresses)))
        await trio.sleep(0.1)
        if peer not in self.up:
            raise self.error("no")
        self.members[peer] = Member(peer, "member", None)
        self.peers.poke()

    async def run(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.peers.run()


def seed(place: int) -> str:
    return f"/ip4/10.0.0.{place}/tcp/1/p2p/{name(place)}"


async def test_all_seeds_are_tried(autojump_clock: Clock) -> None:
    world = World(name(1), name(2), seeds=[seed(1), seed(2)])
    await world.run(10)
    assert sorted(world.members) == sorted([name(1), name(2)])
    assert len(world.tries) == 2


async def test_dead_seed_is_tried_for_ever_and_ever_less(autojump_clock: Clock) -> None:
    world = World(seeds=[seed(1)])
    await world.run(3600)
    assert 120 <= len(world.tries) <= 260
    assert world.tries[1][0] - world.tries[0][0] < 1


async def test_refusal_is_told(autojump_clock: Clock) -> None:
    world = World(seeds=[seed(1)])
    world.error = Refused
    await world.run(1)
    assert [entry.event for entry in world.entries][:1] == ["refused"]


async def test_announced_members_are_connected_to_up_to_enough(autojump_clock: Clock) -> None:
    world = World(*(name(place) for place in range(40)))
    for place in range(40):
        world.peers.know(name(place), [f"/ip4/10.0.0.{place}/tcp/1"])
    await world.run(60)
    assert len(world.members) == ENOUGH


async def test_lost_member_is_replaced(autojump_clock: Clock) -> None:
    world = World(*(name(place) for place in range(20)))
    for place in range(20):
        world.peers.know(name(place), ["/ip4/10.0.0.1/tcp/1"])
    await world.run(10)
    world.members.popitem()
    await world.run(10)
    assert len(world.members) == ENOUGH


async def test_unreachable_member_costs_little(autojump_clock: Clock) -> None:
    world = World()
    world.peers.know(name(1), ["/ip4/10.0.0.1/tcp/1"])
    await world.run(3600)
    assert 120 <= len(world.tries) <= 260


@pytest.mark.parametrize("bad", ["", "/p2p/", "/ip4/1.1.1.1/tcp/1", "/ip4/1.1.1.1/tcp/1/p2p/x"])
def test_bad_seed_is_named_and_skipped(bad: str) -> None:
    world = World(seeds=[bad, seed(1)])
    assert [entry.event for entry in world.entries] == ["bad_seed"]
    assert world.peers.addresses(name(1)) == ("/ip4/10.0.0.1/tcp/1",)


def test_own_addresses_are_skipped() -> None:
    world = World(seeds=[f"/ip4/10.0.0.1/tcp/1/p2p/{US}"])
    world.peers.know(US, ["/ip4/10.0.0.1/tcp/1"])
    assert world.peers.addresses(US) == ()


def test_addresses_join_what_is_known() -> None:
    world = World(seeds=[seed(1)])
    world.peers.know(name(1), ["/ip4/10.0.0.9/tcp/1", "/ip4/10.0.0.1/tcp/1"])
    assert world.peers.addresses(name(1)) == ("/ip4/10.0.0.9/tcp/1", "/ip4/10.0.0.1/tcp/1")
    world.peers.know(name(1), [])
    assert world.peers.addresses(name(1)) == ("/ip4/10.0.0.9/tcp/1", "/ip4/10.0.0.1/tcp/1")


async def test_lapsed_member_is_sought_for_ever_by_one_that_is_alone(
    autojump_clock: Clock,
) -> None:
    world = World()
    world.peers.know(name(1), ["/ip4/10.0.0.1/tcp/1"])
    world.peers.know(name(1), [])
    await world.run(3600)
    assert 120 <= len(world.tries) <= 260
    world.up.add(name(1))
    await world.run(31)
    assert name(1) in world.members


async def test_halves_of_a_mesh_find_one_another(autojump_clock: Clock) -> None:
    world = World(name(1), name(2))
    world.members[name(1)] = Member(name(1), "member", None)
    world.peers.know(name(2), ["/ip4/10.0.0.2/tcp/1"])
    world.peers.know(name(2), [])
    await world.run(120)
    assert name(2) in world.members


async def test_seed_that_is_not_connected_is_tried_now_and_then(autojump_clock: Clock) -> None:
    world = World(seeds=[seed(1)])
    world.members[name(2)] = Member(name(2), "member", None)
    await world.run(3600)
    assert 60 <= len(world.tries) <= 180


async def test_many_seeds_are_dialed_a_few_at_a_time(autojump_clock: Clock) -> None:
    world = World(seeds=[seed(place) for place in range(100)])
    await world.run(0.05)
    assert len(world.tries) == TOGETHER


async def test_refused_member_is_sought_no_more(autojump_clock: Clock) -> None:
    world = World()
    world.error = Refused
    world.peers.know(name(1), ["/ip4/10.0.0.1/tcp/1"])
    world.peers.know(name(1), [])
    await world.run(600)
    assert len(world.tries) == 1


async def test_new_address_is_tried_at_once(autojump_clock: Clock) -> None:
    world = World()
    world.peers.know(name(1), ["/ip4/10.0.0.1/tcp/1"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.run, 700)
        await trio.sleep(600)
        world.up.add(name(1))
        before = trio.current_time()
        world.peers.know(name(1), ["/ip4/10.0.0.2/tcp/1"])
        await trio.sleep(1)
        assert name(1) in world.members
        at, _, addresses = world.tries[-1]
        assert at - before < 0.2
        assert addresses == ("/ip4/10.0.0.2/tcp/1",)


async def test_large_mesh_costs_no_more_than_a_small_one(autojump_clock: Clock) -> None:
    peers = [peer_id(place.to_bytes(32, "big")) for place in range(1, 5001)]
    world = World(*peers)
    for peer in peers:
        world.peers.know(peer, ["/ip4/10.0.0.1/tcp/1"])
    await world.run(600)
    assert len(world.members) == ENOUGH
    assert len(world.tries) == ENOUGH
    assert len(world.peers._waiting) <= 2 * ENOUGH


def test_what_lapses_and_comes_again_leaves_nothing_behind() -> None:
    world = World()
    world.members.update({name(place): Member(name(place), "member", None) for place in range(20)})
    for round_ in range(1000):
        world.peers.know(name(30), [f"/ip4/10.0.0.1/tcp/{round_ + 1}"])
        world.peers.know(name(30), [])
    assert len(world.peers._ready) <= 100


def test_lost_members_are_few() -> None:
    world = World()
    for place in range(1, 2 * MAX_LOST):
        peer = peer_id(place.to_bytes(32, "big"))
        world.peers.know(peer, ["/ip4/10.0.0.1/tcp/1"])
        world.peers.know(peer, [])
    assert len(world.peers._lost) == MAX_LOST
