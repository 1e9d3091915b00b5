"""The libp2p host, hardened: what any peer sends, the host lives and serves the others.

py-libp2p 0.8.1 has defects that its defaults expose. Each patch on a private name of it stands
in this module or in patches.py (those on Pubsub in gossip.py, what takes the place of Yamux in
muxer.py), says which defect it answers, and has a test in tests/net. The version is pinned for
their sake.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import INotifee
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_key
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.rcmgr import ResourceLimits, ResourceManager
from libp2p.rcmgr.connection_limits import ConnectionLimits
from libp2p.rcmgr.memory_limits import MemoryConnectionLimits
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net import patches
from p2p_mesh.net.addresses import expand, remote_host, why_deaf
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.muxer import FAREWELL

MAX_CONNECTIONS = 1000
UPGRADE_TIMEOUT = 15.0
"""Seconds for Noise and Yamux, which take about seven round trips."""

MAX_WAITING = 512
MAX_WAITING_PER_ADDRESS = 64
"""Connections that are not upgraded yet; one more pushes the oldest out."""

DIAL_TIMEOUT = 15.0
DIAL_STAGGER = 0.15
OPEN_TIMEOUT = 10.0

SEVER_TIMEOUT = FAREWELL + 2.0
"""Seconds to close a connection, of which libp2p sleeps some tenths."""

Handler = Callable[[Any], Awaitable[None]]
TaskStatus = Any  # trio's own is not exported


class Unreached(Unavailable):
    """No address of a peer answered. It says what each was tried with, which is long."""


class Watch(INotifee):  # type: ignore[misc]
    """Tells two callables of connections that came and went."""

    def __init__(self, came: Callable[[Any], None], went: Callable[[Any], None]) -> None:
        self._came = came
        self._went = went

    async def connected(self, network: Any, conn: Any) -> None:
        self._came(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._went(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


class Waiting:
    """Connections that have not shown yet that they speak libp2p (defect L).

    An honest handshake takes milliseconds, so where too many wait, the oldest is the one to
    go: half-open sockets then cannot keep anybody out.
    """

    def __init__(self) -> None:
        self._scopes: OrderedDict[trio.CancelScope, str] = OrderedDict()
        self._by_address: Counter[str] = Counter()

    @asynccontextmanager
    async def admit(self, address: str) -> AsyncIterator[None]:
        with trio.CancelScope() as scope:
            self._scopes[scope] = address
            self._by_address[address] += 1
            self._evict(address)
            try:
                yield
            finally:
                self._forget(scope)

    def _evict(self, address: str) -> None:
        if self._by_address[address] > MAX_WAITING_PER_ADDRESS:
            self._cancel(next(scope for scope, of in self._scopes.items() if of == address))
        elif len(self._scopes) > MAX_WAITING:
            self._cancel(next(iter(self._scopes)))

    def _cancel(self, scope: trio.CancelScope) -> None:
        scope.cancel()
        self._forget(scope)

    def _forget(self, scope: trio.CancelScope) -> None:
        address = self._scopes.pop(scope, None)
        if address is None:
            return
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class Host:
    """One libp2p host: Noise and Yamux over TCP, or over the transports that are given."""

    def __init__(
        self,
        identity: Identity,
        journal: Journal,
        *,
        transports: Sequence[Any] | None = None,
        max_streams: Callable[[PeerId], int] = lambda _: 256,
    ) -> None:
        patches.apply()
        self.peer_id = identity.peer_id
        self.libp2p = _make(identity, transports)
        self._journal = journal
        self._swarm = self.libp2p.get_network()
        self._waiting = Waiting()
        self._streams: Counter[PeerId] = Counter()
        self._max_streams = max_streams
        self._negotiate = self.libp2p._swarm_stream_handler
        # Defect B: an exception in any stream handler ends the host.
        self._swarm.set_stream_handler(self._guard)
        # Defects L and N: half-open sockets hold a slot for 10 s, and each connection that was
        # ever accepted holds one for ever, so that a host turns deaf in the course of time.
        self._swarm._handle_inbound_connection = self._accept
        # Defects H and O: a stream to a peer that is gone dials it again, and the auto-connector
        # dials, whatever its watermarks say, every address that a peer ever told.
        self._swarm.dial_peer = _no_dial
        self._swarm.auto_connector.maybe_connect = trio.lowlevel.checkpoint

    @asynccontextmanager
    async def run(self, listen: Sequence[str]) -> AsyncIterator[None]:
        """Listens; on leaving, closes every connection, also those whose peer hangs.
        Raises SettingsError where it cannot listen.
        """
        stop = trio.Event()
        with bare():
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve, listen, stop)
                try:
                    yield
                finally:
                    stop.set()

    async def _serve(
        self, listen: Sequence[str], stop: trio.Event, *, task_status: TaskStatus
    ) -> None:
        # Shielded: cancelled, libp2p would only forget its connections (defect M), and peers
        # would learn nothing for as long as this process lives.
        with trio.CancelScope(shield=True):
            async with self.libp2p.run([Multiaddr(address) for address in listen]):
                await self._check_listening(listen)
                task_status.started()
                await stop.wait()
                await self._close()

    async def _check_listening(self, listen: Sequence[str]) -> None:
        for address in listen:
            if address not in self._swarm.listeners:
                raise await why_deaf(address)

    async def _close(self) -> None:
        # libp2p's own close takes a third of a second for each connection, in turn.
        async with trio.open_nursery() as nursery:
            for conn in self._swarm.get_connections():
                nursery.start_soon(_sever, conn)
        with trio.move_on_after(0.5):
            await self.libp2p.close()

    def watch(self, came: Callable[[Any], None], went: Callable[[Any], None]) -> None:
        self._swarm.register_notifee(Watch(came, went))

    def handle(self, protocol: str, handler: Handler) -> None:
        self.libp2p.set_stream_handler(protocol, handler)

    def is_connected(self, peer: PeerId) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(_id(peer)))

    def speaks(self, peer: PeerId) -> tuple[str, ...]:
        """The protocols that the peer listed in identify, as far as it came."""
        try:
            return tuple(self.libp2p.get_peerstore().get_protocols(_id(peer)))
        except Exception:  # noqa: BLE001 - the peerstore raises where it knows nothing
            return ()

    async def open(self, peer: PeerId, protocol: str) -> Any:
        """A new stream to a connected peer. Raises Unavailable."""
        if not self.is_connected(peer):
            raise Unavailable(f"{peer} is not connected")
        try:
            with trio.fail_after(OPEN_TIMEOUT):
                return await self.libp2p.new_stream(_id(peer), [protocol])
        except trio.TooSlowError as error:
            raise Unavailable(f"{peer} did not open a stream within {OPEN_TIMEOUT:g} s") from error
        except Exception as error:
            raise Unavailable(f"{peer} opened no {protocol} stream") from error

    async def dial(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Connects by whichever address answers first. Raises Unreached.

        host.connect would try one address of them, wait 250 ms, and then ban the peer for a
        minute (defects H and I).
        """
        if self.is_connected(peer):
            return
        failures: list[str] = []
        with trio.move_on_after(DIAL_TIMEOUT):
            async with trio.open_nursery() as nursery:
                won = nursery.cancel_scope
                for place, address in enumerate(addresses):
                    nursery.start_soon(self._attempt, peer, address, place, won, failures)
        if not won.cancel_called:
            tried = "; ".join(failures)[:500] or "no address answered"
            raise Unreached(f"cannot reach {peer}: {tried}")

    async def _attempt(
        self, peer: PeerId, address: str, place: int, won: trio.CancelScope, failures: list[str]
    ) -> None:
        await trio.sleep(place * DIAL_STAGGER)
        try:
            await self._swarm._dial_addr_single_attempt(Multiaddr(address), _id(peer))
        except Exception as error:  # noqa: BLE001 - whatever a transport or an address raises
            failures.append(f"{address[:100]}: {error.__cause__ or error}"[:200])
        else:
            won.cancel()  # the other attempts are not needed any more

    async def drop(self, peer: PeerId) -> None:
        """Closes every connection to a peer, also where the caller is cancelled meanwhile."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for conn in self._swarm.get_connections(_id(peer)):
                    nursery.start_soon(_sever, conn)

    def forget(self, peer: PeerId) -> None:
        """Lets go of what libp2p remembers of a peer that is gone."""
        with suppress(Exception):
            self.libp2p.get_peerstore().clear_peerdata(_id(peer))

    def addresses(self) -> tuple[str, ...]:
        """Where this host listens, without the peer id, and with no wildcard in it."""
        found: dict[str, None] = {}
        for address in self.libp2p.get_transport_addrs():
            found.update(dict.fromkeys(expand(str(address))))
        return tuple(found)

    async def _accept(self, stream: Any, address: Any) -> None:
        muxed = None
        async with self._waiting.admit(remote_host(stream)):
            try:
                raw = RawConnection(stream, False)
                muxed = await self._swarm.upgrade_inbound_raw_conn(raw, address)
            except Exception as error:  # noqa: BLE001 - garbage, HTTP, a plaintext dialer
                self._journal.debug("stranger", f"a connection that speaks no libp2p: {error}")
        if muxed is not None:
            # The listener closes the socket when this returns.
            await muxed.event_closed.wait()
        else:
            with trio.CancelScope(shield=True), suppress(Exception):
                await stream.close()

    async def _guard(self, stream: Any) -> None:
        peer = name_of(stream)
        self._streams[peer] += 1
        try:
            if self._streams[peer] > self._max_streams(peer):
                await stream.reset()
            else:
                await self._negotiate(stream)
        except Exception as error:  # noqa: BLE001 - the supervision boundary of all handlers
            self._journal.debug("bad_stream", f"a stream from {peer} failed: {error!r}", peer=peer)
            with suppress(Exception):
                await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]


def name_of(stream: Any) -> PeerId:
    """The peer at the other end of a stream or a connection."""
    return PeerId(str(stream.muxed_conn.peer_id))


def _id(peer: PeerId) -> Any:
    return ID.from_base58(peer)


async def _no_dial(peer: Any) -> Any:
    raise SwarmException(f"{peer} is not connected")


def _make(identity: Identity, transports: Sequence[Any] | None) -> Any:
    keys = identity.key_pair()
    return new_host(
        key_pair=keys,
        # Defect A: the default also takes /plaintext/2.0.0, where anybody is whom he says.
        sec_opt={NOISE: Noise(keys, noise_privkey=new_noise_key().private_key)},
        muxer_opt={YAMUX: Yamux},
        connection_config=_connections(),
        resource_manager=_resources(),
        transports=transports,
        # What peers say they see is no address of ours: announcements carry the addresses.
        disable_identify_address_discovery=True,
    )


def _connections() -> Any:
    return ConnectionConfig(
        max_connections=MAX_CONNECTIONS,
        high_watermark=MAX_CONNECTIONS,
        low_watermark=0,
        min_connections=0,
        inbound_upgrade_timeout=UPGRADE_TIMEOUT,
        outbound_upgrade_timeout=UPGRADE_TIMEOUT,
        # Its health monitor opens a stream for each ping, which is what an idle node would spend
        # most of its time on. Whoever closes nothing (defect G) is seen by net/health.py.
        enable_health_monitoring=False,
    )


def _resources() -> Any:
    """Counts, and nothing that looks at memory: a machine full of model weights is what a node
    is for. The breaker and the rate limiter would shut everybody out because of one peer.
    """
    return ResourceManager(
        limits=ResourceLimits(max_connections=2 * MAX_CONNECTIONS + MAX_WAITING),
        connection_limits=ConnectionLimits(max_established_per_peer=8),
        memory_limits=MemoryConnectionLimits(),
        enable_memory_limits=False,
        enable_circuit_breaker=False,
        enable_graceful_degradation=False,
        enable_rate_limiting=False,
        enable_metrics=False,
    )


async def _sever(conn: Any) -> None:
    """Closes a connection. The muxer's farewell is short, so this takes long only where the socket
    does not close; the rest is then done without it. libp2p closes a connection once: cut short
    and left, it would stay in all books for ever, and nobody would hear that it went.
    """
    with trio.move_on_after(SEVER_TIMEOUT) as scope:
        await conn.close()
    if scope.cancelled_caught:
        muxed = conn.muxed_conn
        with trio.CancelScope() as gone, suppress(Exception):
            gone.cancel()
            await muxed.secured_conn.close()
        muxed.event_closed.set()  # else it would be closed, and waited for, once more
        with trio.move_on_after(SEVER_TIMEOUT):
            await conn._cleanup()
