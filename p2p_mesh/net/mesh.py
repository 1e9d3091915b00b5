"""The network as the node sees it: members, messages, questions and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from random import Random
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.control import Command, Report
from p2p_mesh.core.health import Health
from p2p_mesh.core.inventory import MAX_ENVELOPE
from p2p_mesh.core.invite import Credential, Member, check
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.core.revocation import Revoked
from p2p_mesh.core.signature import Signed
from p2p_mesh.core.wire import ADMISSION_LIMIT, decode, encode
from p2p_mesh.errors import LocalError, MeshError, Refused, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.admission import Admission, Holder, Ourselves
from p2p_mesh.net.answering import Answers
from p2p_mesh.net.artifacts import Artifacts
from p2p_mesh.net.control import Control
from p2p_mesh.net.foreign import Foreign
from p2p_mesh.net.gossip import MAX_MESSAGE, Gossip, Receive
from p2p_mesh.net.handlers import Handlers
from p2p_mesh.net.health import Pulse
from p2p_mesh.net.host import Host, Unreached
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.inference import Questions
from p2p_mesh.net.inventory import Snapshots
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.peers import Peers
from p2p_mesh.net.revocation import Revocations

STREAMS_OF_A_MEMBER = 256
STREAMS_OF_A_STRANGER = 16


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
        revocation: Signed | None,
    ) -> None:
        self.peer_id = host.peer_id
        self._us = us
        self._rng = rng
        self._host = host
        self._handlers = handlers
        self._journal = journal
        self._nursery = nursery
        self._is_closing = False
        self._dialing: dict[PeerId, trio.Lock] = {}
        self._expecting: dict[PeerId, set[trio.CancelScope]] = {}
        offences = Offences(journal)
        self._membership = trio.CancelScope()
        self._revocations = Revocations(
            ourselves.mesh_key, us, journal, revocation, changed=self._judge
        )
        self._admission = Admission(
            host,
            ourselves,
            offences,
            clock,
            nursery,
            holder=Holder(self._revocations, self.adopt, handlers.redeem),
            joined=self._joined,
            left=self._left,
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
        self._snapshots = Snapshots(self._protocols, handlers, offences, journal)
        self._questions = Questions(
            self._protocols, nursery, alive=self._alive, heard_load=handlers.heard_load
        )
        self._pulse = Pulse(
            self._protocols,
            Health(rng),
            nursery,
            handlers=handlers,
            offences=offences,
            connect=self.connect,
            drop=host.drop,
            fail=self._fail,
        )
        Answers(self._protocols, handlers, journal)
        self.artifacts = Artifacts(self._protocols, offences, self._using, self._alive)
        self._foreign = Foreign(self._protocols, self._using)
        self.open_stream, self.serve_protocol = self._foreign.open, self._foreign.serve
        self.control = Control(self._protocols, host.peer_id, clock)
        self._peers = Peers(
            host.peer_id, seeds, self.members(), self.connect, journal=journal, rng=rng
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        async with self._gossip.run():
            if self._us.role == "member":
                await self.subscribe("inventory", self._announced, MAX_ENVELOPE)
            await self.subscribe("revocation", self._revocation_heard, ADMISSION_LIMIT)
            async with trio.open_nursery() as seeking:
                seeking.start_soon(self._seek)
                seeking.start_soon(self._pulse.run)
                if self._us.role == "client":
                    seeking.start_soon(self._snapshots.follow, self.members(), self._rng)
                try:
                    yield
                finally:
                    self._is_closing = True
                    seeking.cancel_scope.cancel()

    def addresses(self) -> tuple[str, ...]:
        """Where this node listens: multiaddrs without the peer id, no wildcards."""
        return self._host.addresses()

    @property
    def revoked(self) -> Revoked:
        """Everything that was taken back in this mesh, as far as this node has heard."""
        return self._revocations.revoked

    @property
    def is_revoked(self) -> bool:
        """This node itself is out, and goes on alone."""
        return self._revocations.is_out

    def adopt(self, signed: Signed) -> bool:
        """Acts on a revocation, and tells all members, if it is newer than what is known.
        Raises RemoteError where it is not the mesh's.
        """
        is_news = self._revocations.adopt(signed)
        if is_news:
            self._nursery.start_soon(self._tell_on, signed)
        return is_news

    async def _tell_on(self, signed: Signed) -> None:
        with suppress(LocalError):  # so early in its life that nobody is there to hear it
            await self.publish("revocation", encode(signed))

    def _revocation_heard(self, author: PeerId, data: bytes) -> bool:
        self._revocations.adopt(decode(data, Signed))
        return True

    def _judge(self, signed: Signed, revoked: Revoked) -> None:
        self._handlers.revoked(signed, revoked)
        self._admission.judge_again()
        if self.is_revoked:
            self._membership.cancel()

    async def _seek(self) -> None:
        """Looks for peers, for as long as this node is a member."""
        if not self.is_revoked:
            with self._membership:
                await self._peers.run()

    def members(self) -> Mapping[PeerId, Member]:
        """The peers that are admitted and connected; a live view."""
        return self._admission.members

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> Member:
        """The admitted member `peer`, dialed if need be. Raises Unavailable and Refused."""
        if peer == self.peer_id:
            raise LocalError("a node does not connect to itself")
        if self.is_revoked:
            raise Unavailable("this node's membership of the mesh was revoked")
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
        except MeshError as error:
            if isinstance(error, Refused) and error.reason == "revoked":
                self._peers.forget(peer)
            if member := self.members().get(peer):
                return member  # it dialed us at the same time, and was faster
            await self._host.drop(peer)
            raise

    def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remembers where a member listens, as it announced; no address forgets it."""
        self._peers.know(peer, addresses)
        self._pulse.know(peer, is_announced=bool(addresses))

    def rtt(self, peer: PeerId) -> float | None:
        """Seconds to a peer and back, as pings took lately."""
        return self._pulse.rtt(peer)

    async def check(self, peer: PeerId) -> None:
        """Connects if need be, and asks for a sign of life. Raises Unavailable and Refused."""
        await self.connect(peer)
        await self._pulse.check(peer)

    @asynccontextmanager
    async def _using(self, peer: PeerId) -> AsyncIterator[None]:
        """A peer that is connected, that answers, and that is watched closely meanwhile."""
        try:
            await self.connect(peer)
        except Unreached as error:  # whoever asks something of it need not know its addresses
            raise Unavailable(f"{peer} does not answer") from error
        with self._pulse.using(peer):
            if not self._pulse.is_fresh(peer):
                await self._pulse.check(peer)
            try:
                yield
            except Unavailable:
                self._pulse.doubt(peer)
                raise

    async def publish(self, topic: str, data: bytes) -> None:
        """Tells every member that listens to the topic."""
        await self._gossip.publish(topic, data)
        if topic == "inventory":
            self._snapshots.spread(data)

    async def subscribe(self, topic: str, receive: Receive, max_bytes: int = MAX_MESSAGE) -> None:
        """From now on, `receive` judges and takes what others publish to a topic."""
        await self._gossip.subscribe(topic, receive, max_bytes)

    @asynccontextmanager
    async def ask(
        self, peer: PeerId, request: InferenceRequest
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """A peer's answer, connecting first if need be; leaving the context cancels it."""
        async with self._using(peer), self._questions.ask(peer, request) as answer:
            yield answer

    async def order(self, peer: PeerId, command: Command, key: Ed25519PrivateKey) -> Report:
        """A peer's report on an order of its owner, connecting first if need be."""
        await self.connect(peer)
        return await self.control.order(peer, command, key)

    async def query(self, peer: PeerId, query: Query) -> Reply:
        """A peer's reply, connecting first if need be."""
        async with self._using(peer):
            return await self._questions.query(peer, query)

    async def expel(self, peer: PeerId, reason: str) -> None:
        """Drops a peer at once, as after a revocation."""
        await self._admission.expel(peer, reason)

    def _announced(self, author: PeerId, data: bytes) -> bool:
        return self._snapshots.hear(data)

    def _joined(self, member: Member) -> None:
        for scope in self._expecting.get(member.peer, ()):
            scope.cancel()
        self._handlers.joined(member)
        self._pulse.joined(member)
        self._peers.poke()
        self._nursery.start_soon(self._gossip.link, member.peer)
        if self._us.role == "client":
            self._snapshots.poke()
        elif member.role == "member":
            self._nursery.start_soon(self._snapshots.catch_up, member.peer)

    def _fail(self, peer: PeerId, error: MeshError) -> None:
        """Ends what is under way with a peer: it gives no sign of life."""
        self._questions.fail(peer, error)
        self.artifacts.fail(peer, error)
        self._foreign.fail(peer, error)

    def _alive(self, peer: PeerId) -> None:
        """A frame of an answer came."""
        self._pulse.alive(peer)

    def _left(self, peer: PeerId, reason: str) -> None:
        if self._is_closing:
            return
        self._questions.fail(peer, Unavailable(f"{peer} is gone: {reason}"))
        self._gossip.unlink(peer)
        self._peers.poke()
        self._handlers.left(peer, reason)
        self._pulse.left(peer, reason)


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
    revocation: Signed | None = None,
    transports: Sequence[Any] | None = None,
) -> AsyncIterator[Network]:
    """This node in its mesh, listening; it looks for its peers by itself. `revocation` is the
    newest that it heard in former lives.

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
                revocation=revocation,
            )
            try:
                async with host.run(listen or ["/ip4/0.0.0.0/tcp/0"]), network.run():
                    yield network
            finally:
                nursery.cancel_scope.cancel()
