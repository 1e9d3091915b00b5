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


async def test_way_between_two_has_a_delay_of_its_own(autojump_clock: Clock) -> None:
    wire = MemoryNetwork(latency=0.5)
    server, near, far = (wire.transport() for _ in range(3))
    wire.delay(far, server, 3)
    await server.create_listener(echo).listen(Multiaddr(server.address))
    for machine, way in ((near, 0.5), (far, 3)):
        start = trio.current_time()
        pipe = (await machine.dial(Multiaddr(server.address))).stream
        await pipe.write(b"hello")
        assert await pipe.read(5) == b"hello"
        assert trio.current_time() - start == 4 * way
        await pipe.close()


async def test_cut_is_between_two_sides(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    server, here, there = (wire.transport() for _ in range(3))
    await server.create_listener(echo).listen(Multiaddr(server.address))
    pipes = [(await one.dial(Multiaddr(server.address))).stream for one in (here, there)]
    wire.cut([server, here], [there])
    for pipe in pipes:
        await pipe.write(b"x")
    assert await pipes[0].read(1) == b"x"
    with trio.move_on_after(60) as silence:
        await pipes[1].read(1)
    assert silence.cancelled_caught
    wire.heal()
    await pipes[1].write(b"y")
    assert await pipes[1].read(1) == b"y"
    for pipe in pipes:
        await pipe.close()
