from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2p_mesh.errors import Unavailable
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock


@asynccontextmanager
async def pair(wire: MemoryNetwork, machine: Any) -> AsyncIterator[tuple[Node, Node]]:
    mesh = Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=machine, seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        yield first, second


async def test_frozen_peer_ends_the_streams_of_backends(autojump_clock: Clock) -> None:
    async def rest(stream: Any, member: Any) -> None:
        await trio.sleep_forever()

    wire = MemoryNetwork()
    machine = wire.transport()
    async with pair(wire, machine) as (first, second):
        second.net.serve_protocol("plugin/rest", rest)
        async with first.net.open_stream(second.peer_id, "plugin/rest") as stream:
            wire.freeze(machine)
            with pytest.raises(Unavailable, match="is gone"):
                await stream.receive()


async def test_streams_that_ended_are_forgotten(autojump_clock: Clock) -> None:
    async def echo(stream: Any, member: Any) -> None:
        await stream.send(await stream.receive())

    wire = MemoryNetwork()
    async with pair(wire, wire.transport()) as (first, second):
        second.net.serve_protocol("plugin/echo", echo)
        for _ in range(3):
            async with first.net.open_stream(second.peer_id, "plugin/echo") as stream:
                await stream.send(b"a")
                assert await stream.receive() == b"a"
        assert first.net._foreign._open == {}
