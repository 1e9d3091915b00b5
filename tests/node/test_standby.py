"""Nodes with files that stand by: who starts a wanted model, how soon, and who stops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.placement.standby import COLD, KEEP, score
from p2p_mesh.core.records import Announcement, ModelFile, Resources
from p2p_mesh.errors import EngineDied
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.demand import Demanded
from p2p_mesh.node.members import SETTLE
from p2p_mesh.node.standby import Standby
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.backend import Offer as Offered
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh
from tests.node.test_models import M, model, shelf

NAMES = sorted(map(PeerId, "abcdef"), key=lambda peer: score(M.id, peer), reverse=True)
"""In the order of the model's rendezvous."""


class Neighbour:
    """A node without a network: what it announces, the others are told."""

    def __init__(
        self, peer: PeerId, echo: Echo, standby: Sequence[ModelFile], given: Sequence[ModelFile]
    ) -> None:
        self.peer = peer
        self.echo = echo
        self.said: list[Entry] = []
        self.inventory = Inventory()
        self.changed = trio.Event()
        self.models = shelf(echo, standby=tuple(standby), said=self.said, changed=self._change)
        self.models.add(given)
        self.demanded = Demanded(
            self.models.wishes, boot=1.0, clock=lambda: 1000.0 + trio.current_time(),
            journal=Journal(),
        )  # fmt: skip
        self.standby = Standby(
            peer, self.models, self.inventory, self.demanded.rates, Journal(self.said.append)
        )
        self.count = 0

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
        self.demanded.wake()

    def announcement(self) -> Announcement:
        self.count += 1
        served = [one.served() for one in self.models.hosted.values()]
        return Announcement(
            sequence=(1, self.count), issued_at=0, lifetime=600, name=self.peer, version="1",
            resources=Resources(memory_total=100, memory_free=100, threads=1),
            models=tuple(one for one in served if one), held=self.models.held(),
        )  # fmt: skip

    @property
    def serves(self) -> list[str]:
        return [one.id for one in self.models.hosted.values() if one.state == "ready"]

    def events(self) -> list[str]:
        return [entry.event for entry in self.said]


class Neighbours:
    def __init__(self) -> None:
        self.all: list[Neighbour] = []

    def add(
        self,
        *,
        echo: Echo | None = None,
        standby: Sequence[ModelFile] = (M,),
        given: Sequence[ModelFile] = (),
    ) -> Neighbour:
        found = Neighbour(NAMES[len(self.all)], echo or Echo(load_seconds=3.0), standby, given)
        self.all.append(found)
        return found

    async def _announce(self, one: Neighbour) -> None:
        while True:
            changed = one.changed
            announcement = one.announcement()
            for other in self.all:
                other.inventory.apply(Offer(one.peer, announcement, b"", 1e9))
            with trio.move_on_after(20):
                await changed.wait()
                await trio.sleep(SETTLE)

    async def _tell(self, one: Neighbour) -> None:
        async def publish(payload: bytes) -> None:
            await trio.sleep(0.3)
            for other in self.all:
                if other is not one:
                    other.demanded.heard(one.peer, payload)

        await one.demanded.tell(publish)

    @asynccontextmanager
    async def live(self, *, without: Sequence[Neighbour] = ()) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for one in self.all:
                nursery.start_soon(one.models.run)
                nursery.start_soon(self._announce, one)
                nursery.start_soon(self._tell, one)
                if one not in without:
                    nursery.start_soon(one.standby.run)
            await trio.sleep(5)
            yield
            nursery.cancel_scope.cancel()


async def test_standby_starts_a_wanted_model_within_ten_seconds(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine, asker = mesh.add(), mesh.add(standby=())
    async with mesh.live():
        asker.demanded.count(M.id)
        await trio.sleep(10)
        assert mine.serves == ["m"]
        assert mine.models.is_planned(M.id)
    assert "model_wanted" in mine.events()


async def test_wish_of_another_node_is_served(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine, wisher = mesh.add(), mesh.add(standby=())
    wisher.models.wish([M.id])
    async with mesh.live():
        await trio.sleep(5)
        assert mine.serves == ["m"]
        await trio.sleep(3600)
        assert mine.serves == ["m"]


async def test_file_that_does_not_fit_is_a_wish(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine = mesh.add()
    small = mesh.add(echo=Echo(memory=1000), standby=(), given=(M,))
    async with mesh.live():
        await trio.sleep(5)
        assert small.models.hosted["m"].state == "failed"
        assert mine.serves == ["m"]


async def test_wanted_name_may_have_the_digits_of_the_file(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine = mesh.add()
    async with mesh.live():
        mine.demanded.count(ModelId("m@00000000"))
        await trio.sleep(10)
        assert mine.serves == []
        mine.demanded.count(ModelId("m@6d6d6d6d"))
        await trio.sleep(10)
        assert mine.serves == ["m"]


@pytest.mark.parametrize("seconds", [0.0, 3.0, 90.0])
async def test_exactly_one_of_three_starts(autojump_clock: object, seconds: float) -> None:
    mesh = Neighbours()
    nodes = [mesh.add(echo=Echo(load_seconds=seconds)) for _ in range(3)]
    async with mesh.live():
        for _ in range(30):
            nodes[2].demanded.count(M.id)
            await trio.sleep(10)
        assert [len(one.echo.engines) for one in nodes] == [1, 0, 0]


async def test_next_takes_over_when_the_first_does_nothing(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add(echo=Echo()) for _ in range(3)]
    async with mesh.live(without=nodes[:1]):
        nodes[2].demanded.count(M.id)
        await trio.sleep(10)
        assert [one.serves for one in nodes] == [[], ["m"], []]


async def test_next_takes_over_when_the_first_fails(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add() for _ in range(3)]
    nodes[0].echo.failures.append(EngineDied("killed"))
    async with mesh.live():
        nodes[2].demanded.count(M.id)
        await trio.sleep(20)
        assert [one.serves for one in nodes] == [[], ["m"], []]
        await trio.sleep(300)
        assert [one.serves for one in nodes] == [[], ["m"], []]
    assert nodes[0].events().count("model_wanted") == 1


async def test_node_without_memory_leaves_it_to_the_next(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add(echo=Echo(memory=1000)), mesh.add()]
    async with mesh.live():
        nodes[1].demanded.count(M.id)
        await trio.sleep(10)
        assert [one.serves for one in nodes] == [[], ["m"]]
    assert nodes[0].events().count("standby_failed") == 1


async def test_those_that_will_not_act_are_not_waited_for(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add(standby=(), given=(M,)) for _ in range(4)] + [mesh.add()]
    async with mesh.live():
        for one in nodes[:4]:
            await one.models.unload("m")
        await trio.sleep(SETTLE + 1)
        nodes[4].demanded.count(M.id)
        await trio.sleep(10)
        assert nodes[4].serves == ["m"]


async def test_node_that_loads_another_model_is_not_waited_for(autojump_clock: object) -> None:
    mesh = Neighbours()
    x = model("x")
    nodes = [mesh.add(echo=Echo(load_seconds=100.0), standby=(M, x)) for _ in range(4)]
    nodes.append(mesh.add())
    async with mesh.live():
        for one in nodes[:4]:
            await one.models.load("x", is_planned=True)
        await trio.sleep(SETTLE + 1)
        nodes[4].demanded.count(M.id)
        await trio.sleep(10)
        assert nodes[4].serves == ["m"]


async def test_next_takes_over_when_the_server_is_gone(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add(standby=(), given=(M,)), mesh.add(), mesh.add()]
    async with mesh.live():
        for _ in range(6):
            nodes[2].demanded.count(M.id)
            await trio.sleep(10)
        assert [one.serves for one in nodes] == [["m"], [], []]
        for one in nodes[1:]:
            one.inventory.suspect(nodes[0].peer)
        await trio.sleep(10)
        assert [one.serves for one in nodes[1:]] == [["m"], []]


async def test_unwanted_model_is_unloaded_and_stands_by(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine = mesh.add()
    async with mesh.live():
        mine.demanded.count(M.id)
        await trio.sleep(KEEP)
        assert mine.serves == ["m"]
        await trio.sleep(KEEP + COLD)
        assert (mine.serves, mine.models.standby()) == ([], (M,))
    assert "model_spare" in mine.events()


async def test_last_server_of_a_wanted_model_stays(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [mesh.add() for _ in range(2)]
    async with mesh.live():
        for _ in range(200):
            nodes[1].demanded.count(M.id)
            await trio.sleep(0.5)
        assert [one.serves for one in nodes] == [["m"], ["m"]]
        for _ in range(60):
            nodes[1].demanded.count(M.id)
            await trio.sleep(60)
        assert [one.serves for one in nodes] == [["m"], []]


async def test_busy_model_gets_another_node(autojump_clock: object) -> None:
    mesh = Neighbours()
    nodes = [
        mesh.add(standby=(), given=(M,)),
        mesh.add(),
        mesh.add(standby=(), given=(model("x"),)),
    ]
    async with mesh.live():
        for _ in range(40):
            nodes[2].demanded.count(M.id)
            await trio.sleep(2)
        assert nodes[1].serves == ["m"]


async def test_what_an_owner_unloaded_is_not_started_again(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine, other = mesh.add(standby=(), given=(M,)), mesh.add()
    async with mesh.live():
        await mine.models.unload("m")
        for _ in range(6):
            mine.demanded.count(M.id)
            await trio.sleep(10)
        assert (mine.serves, other.serves) == ([], ["m"])


async def test_model_of_our_own_endpoint_needs_no_standby(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine = mesh.add()
    far = mine.models.host(Offered(M.id, lambda: Echo().open(Load(M), NoMesh())))
    mine.models.hosted[M.id] = far
    async with mesh.live(), trio.open_nursery() as nursery:
        nursery.start_soon(far.run)
        await far.wait_settled()
        mine.demanded.count(M.id)
        await trio.sleep(60)
        assert mine.echo.engines == []
        nursery.cancel_scope.cancel()


async def test_node_without_files_looks_at_nothing(autojump_clock: object) -> None:
    mesh = Neighbours()
    mine = mesh.add(standby=(), given=(M,))
    async with mesh.live():
        mine.standby._rates = lambda: pytest.fail("it looked")
        await trio.sleep(10)
