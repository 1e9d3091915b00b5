"""This node's part in the inventory: what it announces, and what it hears of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import __version__
from p2p_mesh.core import inventory as announcements
from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.invite import Credential, Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import (
    Announcement,
    Delta,
    InferenceRequest,
    Query,
    Reply,
    Resources,
    ServedModel,
)
from p2p_mesh.errors import RemoteError
from p2p_mesh.journal import Journal

HEARTBEAT = 20.0
"""Seconds between two announcements of a node of which nothing changed."""

LIFETIME = 60.0
"""Seconds that an announcement holds: two of its successors may get lost."""

EXPIRY_CHECK = 5.0
"""Seconds between two looks for announcements that have lapsed."""

SETTLE = 0.1
"""Seconds in which changes are gathered into one announcement."""

Answer = AbstractAsyncContextManager[AsyncIterator[Delta]]


class Announcer:
    """Makes this node's announcements: at every change, and at a slow heartbeat."""

    def __init__(
        self, key: Ed25519PrivateKey, credential: Credential, *, name: str, boot: float
    ) -> None:
        self._key = key
        self._credential = credential
        self._name = name
        self._boot = int(boot * 1000)
        self._count = 0

    def make(
        self,
        models: Iterable[ServedModel],
        resources: Resources,
        addresses: Sequence[str],
        now: float,
    ) -> bytes:
        """The next envelope, newer than every one before it."""
        self._count += 1
        announcement = Announcement(
            sequence=(self._boot, self._count),
            issued_at=now,
            lifetime=LIFETIME,
            name=self._name,
            version=__version__,
            resources=resources,
            models=tuple(models),
            addresses=tuple(addresses[:32]),
        )
        return announcements.announce(announcement, self._key, self._credential)


class Members:
    """What the network calls when peers come, go, announce and ask (net/mesh.py, Handlers)."""

    def __init__(
        self,
        inventory: Inventory,
        *,
        mesh_key: bytes,
        journal: Journal,
        clock: Callable[[], float],
        answer: Callable[[InferenceRequest], Answer],
        look: Callable[[Query], Awaitable[Reply]],
        changed: Callable[[], None],
    ) -> None:
        self.connected: dict[PeerId, Member] = {}
        self.know: Callable[[PeerId, Sequence[str]], None] | None = None
        """Told of each address that is heard; the network's, once it is up."""
        self._inventory = inventory
        self._mesh_key = mesh_key
        self._journal = journal
        self._clock = clock
        self._answer = answer
        self._look = look
        self._changed = changed

    def snapshot(self) -> Sequence[bytes]:
        return [offer.envelope for offer in self._inventory.offers()]

    def keep(self, envelope: bytes) -> None:
        """Folds in this node's own envelope."""
        self._inventory.apply(announcements.read(envelope, self._mesh_key, self._clock()))

    def heard(self, envelope: bytes) -> bool:
        """Folds an envelope in; True, since it is valid. Raises RemoteError where it is not."""
        offer = announcements.read(envelope, self._mesh_key, self._clock())
        known = self._inventory.get(offer.peer)
        if self._inventory.apply(offer):
            self._inventory.trust(offer.peer)
            self._note(offer, known)
            self._changed()
        return True

    def answer(self, request: InferenceRequest, asker: Member) -> Answer:
        """A peer's request is answered by this node's own models only, so that none goes round."""
        return self._answer(request)

    async def look(self, query: Query, asker: Member) -> Reply:
        """As `answer`."""
        return await self._look(query)

    def joined(self, member: Member) -> None:
        self.connected[member.peer] = member
        self._changed()
        self._inventory.trust(member.peer)
        self._journal.info(
            "peer_joined", f"{member.peer} is connected", peer=member.peer, role=member.role
        )

    def left(self, peer: PeerId, reason: str) -> None:
        self.connected.pop(peer, None)
        self._inventory.suspect(peer)
        self._journal.info("peer_left", f"{peer} is gone: {reason}", peer=peer, reason=reason)

    def expire(self) -> None:
        """Forgets the members whose announcements have lapsed."""
        for peer in self._inventory.expire(self._clock()):
            if self.know is not None:
                self.know(peer, ())
            self._journal.info("member_lapsed", f"{peer} has not announced itself", peer=peer)

    def _note(self, offer: Offer, known: Offer | None) -> None:
        if self.know is not None:
            self.know(offer.peer, offer.announcement.addresses)
        before = {model.id for model in known.announcement.models} if known else set()
        for model in offer.announcement.models:
            if model.id not in before:
                name = offer.announcement.name
                self._journal.info(
                    "model_offered", f"{name} serves {model.id}", model=model.id, peer=offer.peer
                )


async def announce(
    publish: Callable[[bytes], Awaitable[None]],
    make: Callable[[], bytes],
    changed: Callable[[], trio.Event],
    journal: Journal,
) -> None:
    """Publishes what `make` returns, at every change and every HEARTBEAT, until cancelled.
    `changed` gives the event that the next change will set.
    """
    while True:
        waiting = changed()
        try:
            await publish(make())
        except RemoteError as error:
            journal.warning("announce_failed", f"the announcement was not sent: {error}")
        with trio.move_on_after(HEARTBEAT):
            await waiting.wait()
            await trio.sleep(SETTLE)
