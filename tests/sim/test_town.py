"""Towns of 3 to 20 nodes, for minutes of virtual time: what befalls them, and what comes of it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.errors import Unavailable
from p2p_mesh.testing.members import until
from p2p_mesh.testing.town import ECHO, Town

Clock = trio.testing.MockClock
OTHER = ModelId("other")


async def test_twenty_nodes_agree_within_seconds(autojump_clock: Clock) -> None:
    town = Town(20)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        assert trio.current_time() < 10
        peer, text = await town.nodes[7].ask()
        assert peer != town.nodes[7].peer_id
        assert text == "hello"


async def test_partition_is_routed_around_and_heals(autojump_clock: Clock) -> None:
    town = Town(6)
    here, there = range(3), range(3, 6)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        await until(lambda: all(len(node.net.members()) == 5 for node in town.nodes), seconds=60)
        town.wire.cut(town.machines_of(here), town.machines_of(there))
        far = {town.nodes[place].peer_id for place in there}
        await until(lambda: all(len(node.suspects) == 3 for node in town.nodes), seconds=60)
        for place in range(6):
            peer, text = await town.nodes[place].ask()
            assert text == "hello"
            assert (peer in far) == (place in there)
        town.wire.heal()
        await until(lambda: not any(node.suspects for node in town.nodes), seconds=90)
        assert town.agree()


async def test_long_partition_is_forgotten_and_found_again(autojump_clock: Clock) -> None:
    town = Town(4)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        town.wire.cut(town.machines_of([0, 1]), town.machines_of([2, 3]))
        await until(lambda: town.agree([0, 1]) and town.agree([2, 3]), seconds=120)
        town.wire.heal()
        await until(town.agree, seconds=120)


async def test_churn_leaves_those_who_are_there(autojump_clock: Clock) -> None:
    town = Town(4)
    async with AsyncExitStack() as stack:
        for place in range(3):
            await town.open(stack, place)
        for place in (3, 3):
            async with AsyncExitStack() as guest:
                await town.open(guest, place)
                await until(partial(town.agree, [0, 1, 2, place]), seconds=60)
            for node in town.nodes[:3]:
                assert (await node.ask())[1] == "hello"
            await until(lambda: town.agree([0, 1, 2]), seconds=90)


async def test_killed_node_leaves_routing_within_a_second(autojump_clock: Clock) -> None:
    town = Town(3)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        victim = town.nodes[2].peer_id
        await town.nodes[0].ask()
        town.wire.kill(town.machines[2])
        await until(lambda: victim not in town.nodes[0].servers(), seconds=1)


async def test_silent_node_in_use_leaves_routing_within_six_seconds(autojump_clock: Clock) -> None:
    town = Town(3)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        asker = town.nodes[0]
        for _ in range(8):  # both of the others are in use then
            await asker.ask()
        assert {peer for node in town.nodes[1:] for _, peer in node.asked} == {asker.peer_id}
        town.wire.freeze(town.machines[2])
        await until(lambda: asker.servers() == [town.nodes[1].peer_id], seconds=6)
        town.wire.thaw(town.machines[2])
        await until(lambda: len(asker.servers()) == 2, seconds=60)


async def test_slow_node_is_asked_last_and_is_no_suspect(autojump_clock: Clock) -> None:
    town = Town(3)
    for other in (0, 1):
        town.wire.delay(town.machines[2], town.machines[other], 0.4)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        asker, near, far = town.nodes
        async with asker.net._using(far.peer_id), asker.net._using(near.peer_id):
            await trio.sleep(20)
        assert asker.servers() == [near.peer_id, far.peer_id]
        rtt = asker.net.rtt(far.peer_id)
        assert rtt is not None
        assert 0.79 < rtt < 1.0
        assert not asker.health


async def test_flapping_node_disturbs_nobody_else(autojump_clock: Clock) -> None:
    town = Town(4)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        flapping = town.nodes[3].peer_id
        for _ in range(4):
            town.wire.freeze(town.machines[3])
            await trio.sleep(9)
            assert (await town.nodes[1].ask())[1] == "hello"
            town.wire.thaw(town.machines[3])
            await trio.sleep(6)
        for node in town.nodes[:3]:
            assert {peer for _, _, peer in node.health} <= {flapping}
        await until(lambda: not any(node.suspects for node in town.nodes), seconds=90)
        await until(town.agree, seconds=90)  # what it said while it was frozen, it says again


@pytest.mark.parametrize("ahead", [-50.0, 50.0])
async def test_clock_that_is_a_little_wrong_does_no_harm(
    ahead: float, autojump_clock: Clock
) -> None:
    town = Town(3)
    town.set_clock(2, ahead)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        await trio.sleep(90)
        assert town.agree()


async def test_clock_far_ahead_is_refused_and_named(autojump_clock: Clock) -> None:
    town = Town(3)
    town.set_clock(2, 300.0)
    async with AsyncExitStack() as stack:
        for place in range(3):
            await town.open(stack, place)
        await until(lambda: town.agree([0, 1]), seconds=60)
        await trio.sleep(60)
        assert town.agree([0, 1])
        assert any("from the future" in one.message for one in town.nodes[0].entries)


async def test_liar_costs_a_question_one_more_try(autojump_clock: Clock) -> None:
    town = Town(4)
    liar = town.nodes[3]
    liar.claims, liar.serves = (ECHO, OTHER), ()
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        for _ in range(6):
            peer, text = await town.nodes[1].ask()
            assert text == "hello"
            assert peer != liar.peer_id
        with pytest.raises(Unavailable, match="nobody answers for other"):
            await town.nodes[2].ask(model=OTHER)
