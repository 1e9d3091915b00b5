"""The network in memory: that it delays, breaks and freezes as a real one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from p2p_mesh.testing.network import MemoryNetwork, MemoryTransport

Clock = trio.testing.MockClock


async def echo(pipe: Any) -> None:
    while data := await pipe.read(100):
        await pipe.write(data)


async def connect(wire: MemoryNetwork) -> tuple[Any, MemoryTransport]:
    server = wire.transport()
    await server.create_listener(echo).listen(Multiaddr(server.address))
    return (await wire.transport().dial(Multiaddr(server.address))).stream, server


async def test_bytes_take_their_time(autojump_clock: Clock) -> None:
    pipe, _ = await connect(MemoryNetwork(latency=1))
    start = trio.current_time()
    await pipe.write(b"hello")
    assert await pipe.read(3) == b"hel"
    assert await pipe.read(3) == b"lo"
    assert trio.current_time() - start == 2
    await pipe.close()


async def test_killed_machine_breaks_its_connections(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    pipe, server = await connect(wire)
    wire.kill(server)
    with pytest.raises(ConnectionClosedError):
        await pipe.write(b"x")
    with pytest.raises(OpenConnectionError):
        await wire.transport().dial(Multiaddr(server.address))


async def test_frozen_machine_says_nothing(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    pipe, server = await connect(wire)
    wire.freeze(server)
    await pipe.write(b"lost")
    with trio.move_on_after(60) as silence:
        await pipe.read(10)
    assert silence.cancelled_caught
    wire.thaw(server)
    await pipe.write(b"heard")
    assert await pipe.read(10) == b"heard"
    await pipe.close()


async def test_address_is_taken_once() -> None:
    wire = MemoryNetwork()
    server = wire.transport()
    listener = server.create_listener(echo)
    await listener.listen(Multiaddr(server.address))
    with pytest.raises(OpenConnectionError, match="in use"):
        await server.create_listener(echo).listen(Multiaddr(server.address))
    await listener.close()
    await server.create_listener(echo).listen(Multiaddr(server.address))


def test_machines_have_addresses_of_their_own() -> None:
    wire = MemoryNetwork()
    assert len({wire.transport().address for _ in range(1000)}) == 1000
