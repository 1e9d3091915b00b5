"""Nodes that go after those who take part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from meshnode_expert_shards import following, participants
from meshnode_expert_shards.building import study
from meshnode_expert_shards.engine import ShardEngine
from meshnode_expert_shards.following import Follower, Known
from meshnode_expert_shards.rankings import Ranked, keep
from msgspec.structs import replace

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Held, ModelFile
from p2p_mesh.errors import ModelError, Unavailable
from tests.plugins.expert_shards.inner import inner
from tests.plugins.expert_shards.street import Neighbour, Street

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK", 0.005), ("GATHER", 0.02), ("GATHERED", 0.2)):
        monkeypatch.setattr(following, name, seconds)
    for name in ("QUIET", "APART"):
        monkeypatch.setattr(participants, name, 0.0)


class Place:
    """Nodes that have room for so many experts of each layer."""

    def __init__(self, street: Street, model: ModelFile, experts: Layout) -> None:
        self.street = street
        self.model = model
        self._each = experts.bytes_per_expert

    def join(self, name: str, count: int) -> Neighbour:
        held = Held(id=self.model.id, digest=self.model.digest, shards=count * self._each)
        return self.street.node(name, held)

    def leave(self, peer: PeerId) -> None:
        del self.street.nodes[peer]

    async def follower(self, node: Neighbour, count: int, min_mass: float = 0.5) -> Follower:
        whole = await study(await node.package(self.model))
        return Follower(whole, node, room=count * self._each, min_mass=min_mass, settle=0.05)


@pytest.fixture
def town(street: Street, moe: ModelFile, experts: Layout) -> Place:
    return Place(street, moe, experts)


@pytest.fixture
def ranked(ranking: Ranking, cache: object) -> Ranked:
    found = Ranked.of(ranking)
    keep(found)
    return found


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what it waits for knows nothing of it
            await trio.sleep(0.005)


class Running:
    """An engine that is followed."""

    def __init__(self, engine: ShardEngine) -> None:
        self.engine = engine
        self.renewed: list[Known] = []

    @property
    def parts(self) -> Sequence[PeerId]:
        return [one.peer for one in self.engine.held.division.participants]

    async def wait_renewed(self) -> Known:
        with trio.fail_after(20):
            self.reason = await self.engine.wait_ended()
        (known,) = self.renewed
        return known


@asynccontextmanager
async def followed(follower: Follower, ranked: Ranked) -> AsyncIterator[Running]:
    known = await follower.begin(ranked)
    running = Running(ShardEngine(inner(), await follower.hold(known.division, lambda _: None)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.follow, running.engine, known, running.renewed.append)
        yield running
        nursery.cancel_scope.cancel()


async def test_parts_are_dealt_out_to_those_who_are_there(town: Place, ranked: Ranked) -> None:
    me = town.join("a", 32)
    town.join("b", 32)
    follower = await town.follower(me, 32)
    assert [one.peer for one in follower.present()] == [A, B]
    known = await follower.begin(ranked)
    held = await follower.hold(known.division, lambda _: None)
    assert (held.number, held.division.assignment.keep) == (0, 32)
    assert held.built is not None
    assert held.built.path.exists()


async def test_who_comes_in_a_moment_is_waited_for(town: Place, ranked: Ranked) -> None:
    follower = await town.follower(town.join("a", 32), 32)
    async with trio.open_nursery() as nursery:

        async def come() -> None:
            await trio.sleep(0.005)
            town.join("b", 32)

        nursery.start_soon(come)
        known = await follower.begin(ranked)
    assert len(known.division.participants) == 2


async def test_too_few_nodes_are_waited_for_in_words(town: Place, ranked: Ranked) -> None:
    follower = await town.follower(town.join("a", 32), 32)
    with pytest.raises(Unavailable, match="too few nodes take part"):
        await follower.begin(ranked)


async def test_floor_that_is_not_reached_is_refused(town: Place, ranked: Ranked) -> None:
    me = town.join("a", 32)
    town.join("b", 32)
    follower = await town.follower(me, 32, min_mass=0.95)
    with pytest.raises(Unavailable, match=r"less than 0\.95"):
        await follower.begin(ranked)


async def test_node_with_too_little_room_waits_and_the_others_do_not(
    town: Place, ranked: Ranked
) -> None:
    small, large = town.join("a", 1), town.join("b", 32)
    town.join("c", 32)
    follower = await town.follower(small, 1)
    with pytest.raises(Unavailable, match="too little memory"):
        await follower.begin(ranked)
    known = await (await town.follower(large, 32)).begin(ranked)
    assert [one.peer for one in known.division.participants] == [B, C]


async def test_who_has_room_for_all_needs_no_file(town: Place, ranked: Ranked) -> None:
    follower = await town.follower(town.join("a", 48), 48)
    known = await follower.begin(ranked)
    assert (await follower.hold(known.division, lambda _: None)).built is None


async def test_another_node_changes_the_part_once_that_has_lasted(
    town: Place, ranked: Ranked
) -> None:
    me = town.join("b", 32)
    town.join("c", 32)
    follower = await town.follower(me, 32)
    async with followed(follower, ranked) as running:
        assert running.parts == [B, C]
        town.join("a", 32)
        known = await running.wait_renewed()
    assert [one.peer for one in known.division.participants] == [A, B, C]
    assert running.reason == "3 take part now, and it goes over to expert shard 2 of 3"
    held = await follower.hold(known.division, lambda _: None)
    assert held.built is not None


async def test_busy_node_goes_on_with_its_part(
    town: Place, ranked: Ranked, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = town.join("b", 32)
    town.join("c", 32)
    prepared = list[object]()
    hold = Follower.hold

    async def seen(*given: object) -> object:
        prepared.append(await hold(*given))  # type: ignore[arg-type]
        return prepared[-1]

    async with followed(await town.follower(me, 32), ranked) as running:
        monkeypatch.setattr(Follower, "hold", seen)
        running.engine._busy = 1
        town.join("a", 32)
        await until(lambda: prepared)
        assert not running.engine.is_outdated
        running.engine._busy = 0
        await running.wait_renewed()


async def test_node_that_comes_back_changes_nothing(town: Place, ranked: Ranked) -> None:
    me = town.join("a", 32)
    town.join("b", 32)
    follower = await town.follower(me, 32)
    async with followed(follower, ranked) as running:
        town.leave(B)
        town.join("b", 32)
        town.join("c", 48)
        await running.wait_renewed()
    assert len(running.renewed) == 1


async def test_part_is_kept_where_those_who_are_left_are_too_few(
    town: Place, ranked: Ranked
) -> None:
    me = town.join("a", 32)
    town.join("b", 32)
    follower = await town.follower(me, 32)
    seen = list[int]()
    divide = follower.divide

    async def counted(*given: object) -> object:
        seen.append(1)
        return await divide(*given)  # type: ignore[arg-type]

    async with followed(follower, ranked) as running:
        follower.divide = counted  # type: ignore[assignment, method-assign]
        town.leave(B)
        await until(lambda: seen)
        await trio.testing.wait_all_tasks_blocked()
        assert not running.engine.is_outdated
        assert running.parts == [A, B]


async def test_disk_that_is_full_leaves_the_part_as_it_is(town: Place, ranked: Ranked) -> None:
    me = town.join("b", 32)
    town.join("c", 32)
    async with followed(await town.follower(me, 32), ranked) as running:
        me.packages[town.model.path].most = 10
        town.join("a", 32)
        await until(lambda: me.said)
        assert not running.engine.is_outdated
    ((event, text),) = me.said
    assert event == "shard_kept"
    assert "--max-disk" in text
    assert "expert shard 1 of 2" in text


async def test_better_ranking_is_gone_by(
    town: Place, ranked: Ranked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECHECK", 0.01)
    me = town.join("a", 32)
    town.join("b", 32)
    layers = tuple(
        replace(one, counts=one.counts[::-1], masses=one.masses[::-1])
        for one in ranked.ranking.layers
    )
    better = Ranked.of(replace(ranked.ranking, tokens=2000, layers=layers))
    async with followed(await town.follower(me, 32), ranked) as running:
        await trio.to_thread.run_sync(keep, better)
        known = await running.wait_renewed()
    assert known.ranked == better


async def test_shard_without_routers_is_served_and_it_is_said(
    town: Place, ranked: Ranked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: object) -> None:
        raise ModelError("the disk is full")

    monkeypatch.setattr(following, "build_routers", fail)
    me = town.join("a", 32)
    town.join("b", 32)
    async with followed(await town.follower(me, 32), ranked) as running:
        assert running.engine.held.built is not None
        assert running.engine.held.routers is None
    assert me.said == [("routers_missing", "prompts are not weighed: the disk is full")]
