"""A town: nodes of one mesh on one wire, each with the decisions of `core` on top of `net`.

A citizen keeps an inventory, announces itself on time, routes around suspects, and asks the best
of those that are left. Its clock is the virtual one, which may be wrong.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random

import msgspec
import trio

from p2p_mesh.core.inventory import Inventory, announce, pause, read
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import Announcement, Delta, InferenceRequest, Resources, ServedModel
from p2p_mesh.core.routing import Candidate, rank
from p2p_mesh.errors import MeshError, Unavailable, UnknownModel
from p2p_mesh.testing.members import Deltas, Mesh, Node, enter, request, until
from p2p_mesh.testing.network import MemoryNetwork, MemoryTransport

START = 1_800_000_000.0
EXPIRY_CHECK = 5.0

ECHO = ModelId("echo")


@dataclass
class Citizen(Node):
    """A node that takes part: `serves` is what it answers for, `claims` what it says."""

    inventory: Inventory = field(default_factory=Inventory)
    serves: tuple[ModelId, ...] = ()
    claims: tuple[ModelId, ...] = ()
    rng: Random = field(default_factory=Random)

    def snapshot(self) -> Sequence[bytes]:
        return [offer.envelope for offer in self.inventory.offers()]

    def holds(self, envelope: bytes) -> bool:
        return self.inventory.holds(envelope)

    def heard(self, envelope: bytes) -> bool:
        offer = read(envelope, self.mesh_key, self.now(), self.net.revoked)
        if self.inventory.apply(offer):
            self.net.know(offer.peer, offer.announcement.addresses)
        return True

    def suspected(self, peer: PeerId, reason: str) -> None:
        super().suspected(peer, reason)
        self.inventory.suspect(peer, silent=True)

    def revived(self, peer: PeerId) -> None:
        super().revived(peer)
        self.inventory.trust(peer)

    def joined(self, member: Member) -> None:
        super().joined(member)
        self.inventory.trust(member.peer)

    @asynccontextmanager
    async def answer(self, asked: InferenceRequest, asker: Member) -> AsyncIterator[Deltas]:
        if asked.model not in self.serves:
            raise UnknownModel(f"{asked.model} is not served here")
        async with super().answer(asked, asker) as deltas:
            yield deltas

    async def announce(self) -> bytes:
        self.sequence += 1
        now = self.now()
        announcement = Announcement(
            sequence=(int(START * 1000), self.sequence),
            issued_at=now,
            lifetime=60,
            name="citizen",
            version="0",
            resources=Resources(memory_total=1, memory_free=1, threads=1),
            models=tuple(ServedModel(id=one, context=64, slots=2) for one in self.claims),
            addresses=self.net.addresses(),
        )
        envelope = announce(announcement, self.identity.key, self.credential)
        self.inventory.apply(read(envelope, self.mesh_key, now))
        await self.net.publish("inventory", envelope)
        return envelope

    async def live(self) -> None:
        """Announces itself, and forgets who has lapsed, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._speak)
            while True:
                await trio.sleep(EXPIRY_CHECK)
                for peer in self.inventory.expire(self.now()):
                    self.net.know(peer, ())
                    self.suspects.pop(peer, None)

    async def _speak(self) -> None:
        while True:
            await self.announce()
            await trio.sleep(pause(len(self.inventory), self.rng))

    def servers(self, model: ModelId = ECHO) -> list[PeerId]:
        """Who is asked for a model, best first; whoever is suspect is not among them."""
        candidates = [
            Candidate(offer.peer, model, slots=2, rtt=self.net.rtt(offer.peer) or 0.0)
            for offer in self.inventory.offers()
            if offer.peer != self.peer_id
            and any(one.id == model for one in offer.announcement.models)
            and not self.inventory.is_suspect(offer.peer)
        ]
        turn = RequestId(str(self.rng.random()))
        return [one.peer for one in rank(candidates, turn) if one.peer is not None]

    async def ask(self, text: str = "hello", model: ModelId = ECHO) -> tuple[PeerId, str]:
        """Who answered, and what. Raises Unavailable where nobody did."""
        for peer in self.servers(model):
            try:
                await self.net.check(peer)
                asked = msgspec.structs.replace(request(text), model=model)
                async with self.net.ask(peer, asked) as deltas:
                    return peer, await _text(deltas)
            except MeshError:
                self.inventory.suspect(peer)
        raise Unavailable(f"nobody answers for {model}")


async def _text(deltas: AsyncIterator[Delta]) -> str:
    return "".join([delta.text async for delta in deltas])


class Town:
    """Citizens of one mesh on one wire; all serve `echo`."""

    def __init__(self, size: int, latency: float = 0.02) -> None:
        self.wire = MemoryNetwork(latency)
        self.mesh = Mesh()
        self.nodes = [self._citizen(place) for place in range(size)]
        self.machines = [self.wire.transport() for _ in range(size)]

    def _citizen(self, place: int) -> Citizen:
        node = self.mesh.node()
        return Citizen(
            node.identity, node.mesh_key, node.credential,
            now=clock(), serves=(ECHO,), claims=(ECHO,), rng=Random(place),
        )  # fmt: skip

    def set_clock(self, place: int, ahead: float) -> None:
        self.nodes[place] = replace(self.nodes[place], now=clock(ahead))

    async def open(self, stack: AsyncExitStack, place: int) -> Citizen:
        """Opens a node until the stack is left; the first one is the seed of the others."""
        node = self.nodes[place]
        seeds = self.nodes[0].seeds() if place else ()
        await enter(stack, node, transport=self.machines[place], seeds=seeds)
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(node.live)
        return node

    async def open_all(self, stack: AsyncExitStack) -> None:
        """Opens all, and waits until everybody knows everybody."""
        for place in range(len(self.nodes)):
            await self.open(stack, place)
        await until(self.agree, seconds=90)

    def agree(self, among: Iterable[int] | None = None) -> bool:
        """Whether these nodes, or all, know each other and nobody else."""
        group = [self.nodes[place] for place in among or range(len(self.nodes))]
        wanted = sorted(node.peer_id for node in group)
        return all([offer.peer for offer in node.inventory.offers()] == wanted for node in group)

    def machines_of(self, places: Iterable[int]) -> list[MemoryTransport]:
        return [self.machines[place] for place in places]


def clock(ahead: float = 0.0) -> Callable[[], float]:
    """A clock that is so many seconds ahead of what is right."""
    return lambda: START + trio.current_time() + ahead
