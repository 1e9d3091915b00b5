"""Nodes of net code alone, on loopback or on a memory network: for the tests of net/ and sim/."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.inventory import announce, read
from p2p_mesh.core.invite import (
    Credential,
    Invite,
    Member,
    author_of,
    found,
    join,
    make_invite,
    read_token,
)
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    Announcement,
    Delta,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    Resources,
    Role,
    Text,
    TextPrompt,
    Usage,
)
from p2p_mesh.core.revocation import NOTHING, Revoked, seal_revocation
from p2p_mesh.core.signature import Signed, public_bytes
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.mesh import Network, open_network

Deltas = AsyncIterator[Delta]


def request(text: str = "hello", name: str = "r") -> InferenceRequest:
    return InferenceRequest(id=RequestId(name), model=ModelId("echo"), prompt=TextPrompt(text=text))


async def echo(asked: InferenceRequest) -> Deltas:
    """Says the prompt again, a character at a time."""
    assert isinstance(asked.prompt, TextPrompt)
    for place, character in enumerate(asked.prompt.text):
        yield Delta(text=character, tokens=(place,))
    yield Delta(finish="stop", usage=Usage(prompt_tokens=1, completion_tokens=1))


@dataclass
class Node:
    """A node: its keys, what it was told, and its network while it is open."""

    identity: Identity
    mesh_key: bytes
    credential: Credential
    generate: Callable[[InferenceRequest], Deltas] = echo
    entries: list[Entry] = field(default_factory=list)
    known: dict[PeerId, bytes] = field(default_factory=dict)
    came: list[PeerId] = field(default_factory=list)
    gone: list[tuple[PeerId, str]] = field(default_factory=list)
    suspects: dict[PeerId, str] = field(default_factory=dict)
    health: list[tuple[float, str, PeerId]] = field(default_factory=list)
    """When who was suspected, and revived."""
    asked: list[tuple[str, PeerId]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    loads: tuple[ModelLoad, ...] = ()
    heard_loads: list[tuple[PeerId, tuple[ModelLoad, ...]]] = field(default_factory=list)
    redeems: Callable[[Invite, bytes], Credential] | None = None
    """What it does as a holder of the mesh key; None: it is none."""
    revocation: Signed | None = None
    """What it kept of former lives."""
    revocations: list[Signed] = field(default_factory=list)
    net: Network = field(init=False)
    now: Callable[[], float] = time.time  # noqa: TID251
    sequence: int = 0

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def snapshot(self) -> Sequence[bytes]:
        return tuple(self.known.values())

    def holds(self, envelope: bytes) -> bool:
        return envelope in self.known.values()

    def heard(self, envelope: bytes) -> bool:
        offer = read(envelope, self.mesh_key, self.now(), self.net.revoked)
        self.known[offer.peer] = envelope
        self.net.know(offer.peer, offer.announcement.addresses)
        return True

    @asynccontextmanager
    async def answer(self, asked: InferenceRequest, asker: Member) -> AsyncIterator[Deltas]:
        self.asked.append((asked.id, asker.peer))
        try:
            yield self.generate(asked)
        except BaseException:
            self.stopped.append(asked.id)
            raise

    async def look(self, query: Query, asker: Member) -> Reply:
        self.asked.append((query.model, asker.peer))
        return Text(text=query.model)

    def load(self) -> tuple[ModelLoad, ...]:
        return self.loads

    def heard_load(self, peer: PeerId, loads: tuple[ModelLoad, ...]) -> None:
        self.heard_loads.append((peer, loads))

    async def redeem(self, invite: Invite, peer: bytes) -> Credential:
        if self.redeems is None:
            raise Unavailable("this node does not hold the mesh key")
        return self.redeems(invite, peer)

    def revoked(self, signed: Signed, revoked: Revoked) -> None:
        self.revocations.append(signed)
        for peer, envelope in tuple(self.known.items()):
            if revoked.is_revoked(author_of(envelope)):
                del self.known[peer]

    def suspected(self, peer: PeerId, reason: str) -> None:
        self.suspects[peer] = reason
        self.health.append((trio.current_time(), "suspected", peer))

    def revived(self, peer: PeerId) -> None:
        self.suspects.pop(peer, None)
        self.health.append((trio.current_time(), "revived", peer))

    def joined(self, member: Member) -> None:
        self.came.append(member.peer)

    def left(self, peer: PeerId, reason: str) -> None:
        self.gone.append((peer, reason))

    async def announce(self) -> bytes:
        self.sequence += 1
        announcement = Announcement(
            sequence=(1, self.sequence),
            issued_at=self.now(),
            lifetime=60,
            name="test",
            version="0",
            resources=Resources(memory_total=1, memory_free=1, threads=1),
            addresses=self.net.addresses(),
        )
        envelope = announce(announcement, self.identity.key, self.credential)
        self.known[self.peer_id] = envelope
        await self.net.publish("inventory", envelope)
        return envelope

    def seeds(self) -> list[str]:
        return [f"{address}/p2p/{self.peer_id}" for address in self.net.addresses()]

    def events(self, name: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.event == name]


class Mesh:
    """A mesh key, and nodes with memberships from it."""

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()

    @property
    def public(self) -> bytes:
        return public_bytes(self.key)

    def node(self, *, role: Role = "member", until: int | None = None, **more: Any) -> Node:
        identity = Identity(secrets.token_bytes(32))
        return Node(identity, self.public, self.credential(identity, role, until), **more)

    def revoke(self, **what: Any) -> Signed:
        """A revocation: fields of Revoked."""
        return seal_revocation(msgspec.structs.replace(NOTHING, **{"version": 1, **what}), self.key)

    def credential(
        self, identity: Identity, role: Role = "member", until: int | None = None
    ) -> Credential:
        if role == "member" and until is None:
            return found(self.key, identity.public_key)
        token = make_invite(self.key, secrets.token_bytes(32), name="test", role=role, until=until)
        return join(read_token(token), identity.public_key)


@asynccontextmanager
async def opened(
    node: Node,
    *,
    seeds: Sequence[str] = (),
    listen: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",),
    transport: Any = None,
) -> AsyncIterator[Node]:
    """The node on the network: on loopback, or on a memory transport."""
    async with open_network(
        identity=node.identity,
        mesh_key=node.mesh_key,
        credential=node.credential,
        listen=[transport.address] if transport else listen,
        seeds=seeds,
        handlers=node,
        journal=Journal(node.entries.append),
        clock=node.now,
        rng=Random(node.peer_id),
        revocation=node.revocation,
        transports=[transport] if transport else None,
    ) as node.net:
        yield node


async def text_of(node: Node, peer: PeerId, prompt: str = "hello") -> str:
    """What a peer answers."""
    async with node.net.ask(peer, request(prompt)) as deltas:
        return "".join([delta.text async for delta in deltas])


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Waits for a condition; fails in time."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for knows nothing of it
            await trio.sleep(0.01)


async def enter(stack: AsyncExitStack, node: Node, **more: Any) -> Node:
    return await stack.enter_async_context(opened(node, **more))
