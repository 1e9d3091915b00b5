"""A few nodes of net code, for minutes of virtual time: join, churn, partition, slow links."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from p2p_mesh.testing.members import Mesh, Node, enter, text_of, until
from p2p_mesh.testing.network import MemoryNetwork, MemoryTransport

Clock = trio.testing.MockClock


class Town:
    """Nodes of one mesh on one wire."""

    def __init__(self, size: int, latency: float = 0.02) -> None:
        self.wire = MemoryNetwork(latency)
        self.mesh = Mesh()
        self.nodes = [self.mesh.node() for _ in range(size)]
        self.machines = [self.wire.transport() for _ in range(size)]

    async def open(self, stack: AsyncExitStack, place: int) -> Node:
        seeds = self.nodes[0].seeds() if place else ()
        return await enter(stack, self.nodes[place], transport=self.machines[place], seeds=seeds)

    async def open_all(self, stack: AsyncExitStack) -> None:
        for place in range(len(self.nodes)):
            await self.open(stack, place)

    async def announce(self) -> None:
        for node in self.nodes:
            await node.announce()

    async def join_all(self, stack: AsyncExitStack) -> None:
        """Opens all, and has each announce itself once the gossip reaches everybody: unlike a
        real node, these do it once.
        """
        await self.open_all(stack)
        await until(lambda: all(node.net.members() for node in self.nodes), seconds=60)
        await trio.sleep(5)
        await self.announce()
        await until(self.all_connected, seconds=60)

    def machine_of(self, node: Node) -> MemoryTransport:
        return self.machines[self.nodes.index(node)]

    def all_know_all(self) -> bool:
        return all(len(node.known) == len(self.nodes) for node in self.nodes)

    def all_connected(self) -> bool:
        return all(len(node.net.members()) == len(self.nodes) - 1 for node in self.nodes)


@pytest.mark.parametrize("latency", [0.001, 0.2])
async def test_everybody_finds_everybody(latency: float, autojump_clock: Clock) -> None:
    town = Town(5, latency)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        await until(lambda: all(node.net.members() for node in town.nodes), seconds=60)
        await trio.sleep(5)
        await town.announce()
        await until(town.all_know_all, seconds=30)
        await until(town.all_connected, seconds=60)
        assert await text_of(town.nodes[1], town.nodes[4].peer_id) == "hello"


async def test_mesh_outlives_its_seed(autojump_clock: Clock) -> None:
    town = Town(4)
    async with AsyncExitStack() as stack:
        await town.join_all(stack)
        town.wire.kill(town.machines[0])
        rest = town.nodes[1:]
        await until(lambda: all(node.gone for node in rest), seconds=1)
        for node in rest:
            node.known.clear()
        for node in rest:
            await node.announce()
        await until(lambda: all(len(node.known) == 3 for node in rest), seconds=10)
        assert await text_of(rest[0], rest[2].peer_id) == "hello"


async def test_cut_off_node_returns(autojump_clock: Clock) -> None:
    town = Town(3)
    async with AsyncExitStack() as stack:
        await town.join_all(stack)
        lost = town.nodes[2]
        town.wire.freeze(town.machine_of(lost))
        await until(lambda: len(lost.gone) == 2, seconds=60)
        assert not lost.net.members()
        await until(lambda: town.nodes[0].gone, seconds=60)
        town.wire.thaw(town.machine_of(lost))
        await until(town.all_connected, seconds=120)
        assert await text_of(town.nodes[0], lost.peer_id) == "hello"


async def test_nodes_that_come_and_go_leave_nothing_behind(autojump_clock: Clock) -> None:
    town = Town(2)
    async with AsyncExitStack() as stack:
        first = await town.open(stack, 0)
        for _ in range(20):
            async with AsyncExitStack() as inner:
                guest = await town.open(inner, 1)
                assert await text_of(guest, first.peer_id) == "hello"
            await until(lambda: not first.net.members())
        await trio.sleep(60)
        assert len(first.came) == len(first.gone) == 20
        admission = first.net._admission
        assert not admission._conns
        assert not admission._under_way
        assert not first.net._questions._open
        assert not first.net._host._streams


async def test_quiet_minutes_change_nothing(autojump_clock: Clock) -> None:
    town = Town(3)
    async with AsyncExitStack() as stack:
        await town.join_all(stack)
        await trio.sleep(240)
        assert town.all_connected()
        assert not any(node.gone for node in town.nodes)
        assert await text_of(town.nodes[0], town.nodes[2].peer_id) == "hello"
