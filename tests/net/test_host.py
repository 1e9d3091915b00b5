"""The defects of py-libp2p 0.8.1 that host.py and patches.py answer, by the letters used there."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Journal
from p2p_mesh.net import host as host_module
from p2p_mesh.net.host import Host, Waiting
from p2p_mesh.net.identity import Identity
from p2p_mesh.testing.network import MemoryNetwork, MemoryTransport

Clock = trio.testing.MockClock
PEER = peer_id(bytes(range(32)))


async def echo(stream: Any) -> None:
    await stream.write(await stream.read())
    await stream.close()


@asynccontextmanager
async def running(machine: MemoryTransport, **more: Any) -> AsyncIterator[Host]:
    identity = Identity(Random(machine.ip).randbytes(32))
    host = Host(identity, Journal(), transports=[machine], **more)
    host.handle("/echo", echo)
    async with host.run([machine.address]):
        yield host


async def echoed(host: Host, peer: PeerId) -> bytes:
    stream = await host.open(peer, "/echo")
    await stream.write(b"hello")
    data: bytes = await stream.read()
    await stream.close()
    return data


async def test_a_plaintext_dialer_is_turned_away(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    victim = Identity(secrets.token_bytes(32)).key_pair()
    async with running(machine) as host:
        thief = new_host(
            key_pair=victim,
            sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(victim)},
            muxer_opt={YAMUX: Yamux},
            transports=[wire.transport()],
        )
        async with thief.run([]):
            with pytest.raises(Exception, match="security"), trio.fail_after(30):
                await thief.get_network()._dial_addr_single_attempt(
                    Multiaddr(machine.address), ID.from_base58(host.peer_id)
                )
        assert not host.libp2p.get_connected_peers()


@pytest.mark.parametrize("error", [ValueError("bad"), ExceptionGroup("two", [KeyError()])])
async def test_b_raising_handler_does_not_end_the_host(
    error: Exception, autojump_clock: Clock
) -> None:
    async def raising(stream: Any) -> None:
        raise error

    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        host.handle("/raising", raising)
        await other.dial(host.peer_id, [machine.address])
        stream = await other.open(host.peer_id, "/raising")
        with pytest.raises(StreamError):
            await stream.read()
        assert await echoed(other, host.peer_id) == b"hello"


async def test_f_reader_of_a_large_message_keeps_the_writer_going(
    autojump_clock: Clock,
) -> None:
    async def count(stream: Any) -> None:
        total = 0
        while total < 20 << 20:
            total += len(await stream.read())
        await stream.write(str(total).encode())

    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        host.handle("/count", count)
        await other.dial(host.peer_id, [machine.address])
        stream = await other.open(host.peer_id, "/count")
        await stream.write(bytes(20 << 20))
        assert await stream.read() == str(20 << 20).encode()


async def test_h_dial_races_all_addresses(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine, dead = wire.transport(), wire.transport()
    wire.freeze(dead)
    async with running(machine) as host, running(wire.transport()) as other:
        start = trio.current_time()
        await other.dial(
            host.peer_id, [dead.address, "/ip4/10.9.9.9/tcp/1", "nonsense", machine.address]
        )
        assert trio.current_time() - start < 1
        assert await echoed(other, host.peer_id) == b"hello"


async def test_h_failed_dial_bans_nobody(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        with pytest.raises(Unavailable, match="cannot reach"):
            await other.dial(host.peer_id, ["/ip4/10.9.9.9/tcp/1"])
        with pytest.raises(Unavailable, match="no address"):
            await other.dial(host.peer_id, [])
        await other.dial(host.peer_id, [machine.address])
        assert other.is_connected(host.peer_id)


async def test_h_wrong_key_at_an_address_is_unavailable(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    expected = Identity(secrets.token_bytes(32)).peer_id
    async with running(machine), running(wire.transport()) as other:
        with pytest.raises(Unavailable, match="handshake failed"):
            await other.dial(expected, [machine.address])


async def test_i_dial_takes_no_longer_than_its_round_trips(autojump_clock: Clock) -> None:
    wire = MemoryNetwork(latency=0.001)
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        start = trio.current_time()
        await other.dial(host.peer_id, [machine.address])
        assert trio.current_time() - start < 0.05


async def test_k_queues_are_wide() -> None:
    Host(Identity(secrets.token_bytes(32)), Journal())
    queue = RpcQueue()
    assert queue._queue.max_size == 1024


async def test_l_half_open_connections_keep_nobody_out(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine, attacker = wire.transport(), wire.transport()
    async with running(machine) as host:
        for _ in range(2 * host_module.MAX_WAITING):
            await wire.dial(attacker.ip, machine.address)
        assert len(host._waiting._scopes) <= host_module.MAX_WAITING_PER_ADDRESS
        # Also from the very address that all the half-open ones come from.
        async with running(attacker) as other:
            await other.dial(host.peer_id, [machine.address])
            assert await echoed(other, host.peer_id) == b"hello"
        await trio.sleep(host_module.UPGRADE_TIMEOUT + 1)
        assert not host._waiting._scopes


async def test_l_oldest_of_all_makes_room(autojump_clock: Clock) -> None:
    waiting = Waiting()
    evicted: list[int] = []

    async def wait(place: int) -> None:
        async with waiting.admit(f"10.0.0.{place % 100}"):
            await trio.sleep(60)
            return
        evicted.append(place)

    async with trio.open_nursery() as nursery:
        for place in range(host_module.MAX_WAITING + 3):
            nursery.start_soon(wait, place)
            await trio.lowlevel.checkpoint()
    assert evicted == [0, 1, 2]


async def test_m_leaving_closes_connections(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host:
        async with running(wire.transport()) as other:
            await other.dial(host.peer_id, [machine.address])
        await trio.sleep(0.5)
        assert not host.libp2p.get_connected_peers()


async def test_m_leaving_is_quick_with_many_peers_that_hang(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    others = [wire.transport() for _ in range(12)]
    async with trio.open_nursery() as nursery:
        stop = trio.Event()

        async def run(other: MemoryTransport) -> None:
            async with running(other):
                await stop.wait()

        for other in others:
            nursery.start_soon(run, other)
        await trio.sleep(1)
        async with running(machine) as host:
            for other in others:
                peer = Identity(Random(other.ip).randbytes(32)).peer_id
                await host.dial(peer, [other.address])
                wire.freeze(other)
            start = trio.current_time()
        assert trio.current_time() - start < 1
        stop.set()


async def linked(host: Host, other: Host, address: str) -> Any:
    """The connection that the other one has to a host."""
    await other.dial(host.peer_id, [address])
    (conn,) = other.libp2p.get_network().get_connections()
    return conn


class Stuck:
    """A socket that takes nothing."""

    def put(self, data: bytes) -> int:
        return 0

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def read(self) -> bytes:
        await trio.sleep_forever()
        return b""


async def stick(conn: Any) -> None:
    """From now on the peer takes nothing, and a byte waits for it."""
    conn.muxed_conn._wire = Stuck()
    (await conn.muxed_conn.open_stream()).write_nowait(b"x")


async def test_m_peer_that_takes_nothing_is_dropped_from_all_books(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    gone: list[Any] = []
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        other.watch(lambda conn: None, gone.append)
        conn = await linked(host, other, machine.address)
        await stick(conn)
        start = trio.current_time()
        await other.drop(host.peer_id)
        assert trio.current_time() - start < host_module.SEVER_TIMEOUT
        assert gone == [conn]
        assert not other.libp2p.get_network().get_connections()


async def test_m_cancelled_drop_is_whole(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    gone: list[Any] = []
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        other.watch(lambda conn: None, gone.append)
        conn = await linked(host, other, machine.address)
        await stick(conn)
        with trio.move_on_after(0.05):
            await other.drop(host.peer_id)
        assert gone == [conn]
        assert not other.libp2p.get_network().get_connections()


async def test_m_socket_that_does_not_close_is_left(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = MemoryNetwork()
    gone: list[Any] = []
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        other.watch(lambda conn: None, gone.append)
        conn = await linked(host, other, machine.address)
        monkeypatch.setattr(conn.muxed_conn.secured_conn, "close", trio.sleep_forever)
        await other.drop(host.peer_id)
        assert gone == [conn]
        assert not other.libp2p.get_network().get_connections()


async def test_n_accepted_connections_give_their_slot_back(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Unpatched, each inbound connection holds one of max_connections slots for ever.
    monkeypatch.setattr(host_module, "MAX_CONNECTIONS", 5)
    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        for _ in range(20):
            await other.dial(host.peer_id, [machine.address])
            await other.drop(host.peer_id)
            await trio.sleep(1)
        await other.dial(host.peer_id, [machine.address])
        assert await echoed(other, host.peer_id) == b"hello"


async def test_o_nobody_is_dialed_for_being_known(autojump_clock: Clock) -> None:
    # Unpatched, the auto-connector dials what identify and gossip left in the peerstore.
    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        other.libp2p.get_peerstore().add_addrs(
            ID.from_base58(host.peer_id), [Multiaddr(machine.address)], 3600
        )
        await trio.sleep(300)
        assert not host.libp2p.get_connected_peers()
        with pytest.raises(Unavailable, match="not connected"):
            await other.open(host.peer_id, "/echo")


async def test_streams_of_one_peer_are_bounded(autojump_clock: Clock) -> None:
    async def sleep(stream: Any) -> None:
        await trio.sleep(3600)

    wire = MemoryNetwork()
    machine = wire.transport()
    async with (
        running(machine, max_streams=lambda _: 5) as host,
        running(wire.transport()) as other,
    ):
        host.handle("/sleep", sleep)
        await other.dial(host.peer_id, [machine.address])
        refused = 0
        for _ in range(10):
            try:
                await other.open(host.peer_id, "/sleep")
            except Unavailable:
                refused += 1
        assert refused >= 5


async def test_unknown_protocol_is_unavailable(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    machine = wire.transport()
    async with running(machine) as host, running(wire.transport()) as other:
        await other.dial(host.peer_id, [machine.address])
        with pytest.raises(Unavailable, match="opened no /nothing"):
            await other.open(host.peer_id, "/nothing")


async def test_resources_ignore_a_full_memory(autojump_clock: Clock) -> None:
    manager = host_module._resources()
    assert manager.circuit_breaker is None
    assert manager.graceful_degradation is None
    for _ in range(host_module.MAX_CONNECTIONS):
        assert manager.open_connection(None, endpoint_ip="127.0.0.1") is not None


def test_libp2p_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    Host(Identity(secrets.token_bytes(32)), Journal())
    import libp2p.network.connection.swarm_connection as swarm_connection

    logging.getLogger("libp2p.network.swarm").error("a sentence")
    swarm_connection.logging.warning("another")
    assert capfd.readouterr() == ("", "")


async def test_dial_that_every_address_refuses_fails_at_once(autojump_clock: Clock) -> None:
    wire = MemoryNetwork()
    async with running(wire.transport()) as host:
        start = trio.current_time()
        with pytest.raises(Unavailable, match="cannot reach"):
            await host.dial(PEER, ["/ip4/10.9.9.9/tcp/1", "/ip4/10.9.9.8/tcp/1"])
        assert trio.current_time() - start < 1
