"""The network as the node sees it: members, messages, questions and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from random import Random
from typing import Any, Protocol

import trio

from p2p_mesh.core.inventory import MAX_ENVELOPE
from p2p_mesh.core.invite import Credential, Member, check
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.errors import LocalError, MeshError, Refused
from p2p_mesh.journal import Journal
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.admission import Admission, Ourselves
from p2p_mesh.net.gossip import MAX_MESSAGE, Gossip, Receive
from p2p_mesh.net.groups import bare
from p2p_mesh.net.host import Host
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.inference import Answers, Questions
from p2p_mesh.net.inventory import Snapshots
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.peers import Peers

STREAMS_OF_A_MEMBER = 256
STREAMS_OF_A_STRANGER = 16


class Handlers(Protocol):
    """What the node supplies. Nothing but `answer` and `look` may take long."""

    def snapshot(self) -> Sequence[bytes]:
        """The newest envelope of every member, this node's own included."""
        ...

    def heard(self, envelope: bytes) -> bool:
        """An inventory envelope came. True if it is valid, and so may be passed on; may raise
        RemoteError, which says that it is not.
        """
        ...

    def answer(
        self, request: InferenceRequest, asker: Member
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer to a member's request; leaving the context cancels it."""
        ...

    async def look(self, query: Query, asker: Member) -> Reply:
        """The reply to a member's query."""
        ...

    def joined(self, member: Member) -> None:
        """A peer was admitted."""
        ...

    def left(self, peer: PeerId, reason: str) -> None:
        """An admitted peer is connected no more."""
        ...


class Network:
    """One node's end of a mesh. Made by open_network."""

    def __init__(
        self,
        host: Host,
        ourselves: Ourselves,
        us: Member,
        *,
        seeds: Sequence[str],
        handlers: Handlers,
        journal: Journal,
        clock: Callable[[], float],
        rng: Random,
        nursery: trio.Nursery,
    ) -> None:
        self.peer_id = host.peer_id
        self._host = host
        self._handlers = handlers
        self._journal = journal
        self._nursery = nursery
        self._is_closing = False
        self._dialing: dict[PeerId, trio.Lock] = {}
        self._expecting: dict[PeerId, set[trio.CancelScope]] = {}
        offences = Offences(journal)
        self._admission = Admission(
            host, ourselves, offences, clock, nursery, joined=self._joined, left=self._left
        )
        gate = self._admission.gate
        self._protocols = wires.Protocols(host, gate, journal, offences)
        self._gossip = Gossip(
            host,
            ourselves.mesh,
            us,
            members=self.members(),
            gate=gate,
            offences=offences,
            journal=journal,
        )
        self._snapshots = Snapshots(self._protocols, handlers.snapshot, handlers.heard)
        self._questions = Questions(self._protocols, nursery)
        Answers(self._protocols, handlers, journal)
        self._peers = Peers(
            host.peer_id, seeds, self.members(), self.connect, journal=journal, rng=rng
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._gossip.run():
            await self.subscribe("inventory", self._announced, MAX_ENVELOPE)
            async with trio.open_nursery() as seeking:
                seeking.start_soon(self._peers.run)
                try:
                    yield
                finally:
                    self._is_closing = True
                    seeking.cancel_scope.cancel()

    def addresses(self) -> tuple[str, ...]:
        """Where this node listens: multiaddrs without the peer id, no wildcards."""
        return self._host.addresses()

    def members(self) -> Mapping[PeerId, Member]:
        """The peers that are admitted and connected; a live view."""
        return self._admission.members

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Member:
        """The admitted member `peer`, dialed if need be. Raises Unavailable and Refused."""
        if peer == self.peer_id:
            raise LocalError("a node does not connect to itself")
        if member := self.members().get(peer):
            return member
        lock = self._dialing.setdefault(peer, trio.Lock())
        try:
            with self._unless_it_comes(peer):
                async with lock:
                    await self._host.dial(peer, addresses or self._peers.addresses(peer))
            async with lock:
                return self.members().get(peer) or await self._prove(peer)
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._dialing.pop(peer, None)

    @contextmanager
    def _unless_it_comes(self, peer: PeerId) -> Iterator[None]:
        """Cancels its body when the peer is admitted meanwhile: it dialed us, and was faster than
        an address of its that answers nothing.
        """
        scopes = self._expecting.setdefault(peer, set())
        with trio.CancelScope() as scope:
            scopes.add(scope)
            try:
                yield
            finally:
                scopes.discard(scope)
                if not scopes:
                    self._expecting.pop(peer, None)

    async def _prove(self, peer: PeerId) -> Member:
        try:
            return await self._admission.prove(peer)
        except MeshError:
            if member := self.members().get(peer):
                return member  # it dialed us at the same time, and was faster
            await self._host.drop(peer)
            raise

    def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remembers where a member listens, as it announced; no address forgets it."""
        self._peers.know(peer, addresses)

    async def publish(self, topic: str, data: bytes) -> None:
        """Tells every member that listens to the topic."""
        await self._gossip.publish(topic, data)

    async def subscribe(self, topic: str, receive: Receive, max_bytes: int = MAX_MESSAGE) -> None:
        """From now on, `receive` judges and takes what others publish to a topic."""
        await self._gossip.subscribe(topic, receive, max_bytes)

    @asynccontextmanager
    async def ask(
        self, peer: PeerId, request: InferenceRequest
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """A peer's answer, connecting first if need be; leaving the context cancels it."""
        await self.connect(peer)
        async with self._questions.ask(peer, request) as answer:
            yield answer

    async def query(self, peer: PeerId, query: Query) -> Reply:
        """A peer's reply, connecting first if need be."""
        await self.connect(peer)
        return await self._questions.query(peer, query)

    @asynccontextmanager
    async def open_stream(
        self, peer: PeerId, protocol: str, limit: int = wires.FOREIGN_LIMIT
    ) -> AsyncIterator[wires.Drained]:
        """A stream of a backend's own protocol to a member. Raises Unavailable."""
        await self.connect(peer)
        opening = self._protocols.open(peer, wires.Protocol(protocol, limit))
        async with opening as stream, wires.drained(stream) as frames:
            yield frames

    def serve_protocol(
        self,
        protocol: str,
        serve: Callable[[wires.Drained, Member], Awaitable[None]],
        limit: int = wires.FOREIGN_LIMIT,
    ) -> None:
        """Answers the streams of a backend's own protocol that members open."""

        async def attend(stream: wires.Stream, member: Member) -> None:
            async with wires.drained(stream) as frames:
                await serve(frames, member)

        self._protocols.serve(wires.Protocol(protocol, limit), attend)

    async def expel(self, peer: PeerId, reason: str) -> None:
        """Drops a peer at once, as after a revocation."""
        await self._admission.expel(peer, reason)

    def _announced(self, author: PeerId, data: bytes) -> bool:
        return self._handlers.heard(data)

    def _joined(self, member: Member) -> None:
        for scope in self._expecting.get(member.peer, ()):
            scope.cancel()
        self._handlers.joined(member)
        self._peers.poke()
        self._nursery.start_soon(self._gossip.link, member.peer)
        self._nursery.start_soon(self._catch_up, member.peer)

    async def _catch_up(self, peer: PeerId) -> None:
        try:
            await self._snapshots.fetch(peer)
        except MeshError as error:
            self._journal.debug("no_snapshot", f"no snapshot from {peer}: {error}", peer=peer)
        except Exception as error:  # noqa: BLE001 - of the handler, over what a peer sent
            self._journal.error("handler_failed", f"a snapshot failed: {error!r}", peer=peer)

    def _left(self, peer: PeerId, reason: str) -> None:
        if self._is_closing:
            return
        self._gossip.unlink(peer)
        self._peers.poke()
        self._handlers.left(peer, reason)


@asynccontextmanager
async def open_network(
    *,
    identity: Identity,
    mesh_key: bytes,
    credential: Credential,
    listen: Sequence[str],
    seeds: Sequence[str],
    handlers: Handlers,
    journal: Journal,
    clock: Callable[[], float],
    rng: Random,
    transports: Sequence[Any] | None = None,
) -> AsyncIterator[Network]:
    """This node in its mesh, listening; it looks for its peers by itself.

    Raises SettingsError where it cannot listen, and Refused where its own credential proves
    nothing. Leaving the context closes every stream and connection.
    """
    us = check(credential, mesh_key, clock())
    if us.peer != identity.peer_id:
        raise Refused("the credential belongs to another node")
    ourselves = Ourselves(identity.peer_id, identity.key, mesh_key, credential)
    network: Network | None = None

    def max_streams(peer: PeerId) -> int:
        is_member = network is not None and peer in network.members()
        return STREAMS_OF_A_MEMBER if is_member else STREAMS_OF_A_STRANGER

    host = Host(identity, journal, transports=transports, max_streams=max_streams)
    with bare():
        async with trio.open_nursery() as nursery:
            network = Network(
                host,
                ourselves,
                us,
                seeds=seeds,
                handlers=handlers,
                journal=journal,
                clock=clock,
                rng=rng,
                nursery=nursery,
            )
            try:
                async with host.run(listen or ["/ip4/0.0.0.0/tcp/0"]), network.run():
                    yield network
            finally:
                nursery.cancel_scope.cancel()
