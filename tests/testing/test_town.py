"""The town that the simulations are made of; tests/sim shows what becomes of it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.errors import Unavailable
from p2p_mesh.testing.town import ECHO, START, Town, clock

Clock = trio.testing.MockClock


async def test_citizens_ask_each_other(autojump_clock: Clock) -> None:
    town = Town(2)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        one, other = town.nodes
        assert one.servers() == [other.peer_id]
        assert await one.ask("hi") == (other.peer_id, "hi")
        assert other.asked == [("r", one.peer_id)]


async def test_nobody_answers_for_what_nobody_claims(autojump_clock: Clock) -> None:
    town = Town(2)
    town.nodes[1].claims = (ECHO, ModelId("other"))
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        with pytest.raises(Unavailable):
            await town.nodes[0].ask(model=ModelId("other"))
        assert town.nodes[0].inventory.is_suspect(town.nodes[1].peer_id)


async def test_citizens_go_on_announcing_themselves(autojump_clock: Clock) -> None:
    town = Town(2)
    async with AsyncExitStack() as stack:
        await town.open_all(stack)
        await trio.sleep(120)
        assert town.agree()
        assert town.nodes[0].sequence > 5


async def test_clocks_may_be_wrong(autojump_clock: Clock) -> None:
    await trio.sleep(5)
    assert clock()() == START + 5
    assert clock(-60)() == START - 55
