"""This node's part in the inventory: what it announces, and what it hears of the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import __version__
from p2p_mesh.core import inventory as announcements
from p2p_mesh.core.allowance import Allowance
from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.invite import Credential, Invite, Member, author_of
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.records import (
    Announcement,
    Delta,
    Held,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    Resources,
    Role,
    ServedModel,
)
from p2p_mesh.core.revocation import NOTHING, Revoked
from p2p_mesh.core.signature import Signed
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.journal import Journal

EXPIRY_CHECK = 5.0
"""Seconds between two looks for announcements that have lapsed."""

SETTLE = 0.1
"""Seconds in which changes are gathered into one announcement."""

GAP = 1.0
"""Seconds between two announcements, at least: what flaps is not told each time."""

BURST = 8
"""Announcements of one author that are taken at once, since some are late, and as many in"""
REFILL = BURST * GAP / 2
"""seconds: twice as often as anybody makes one."""

MAX_BACKENDS = 32
"""That an announcement has room for."""

MAX_NOTED = 8
"""Models of one announcement that are told of, where it brings many."""

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
        *,
        held: Iterable[Held] = (),
        backends: Iterable[str] = (),
        packages: Iterable[Digest] = (),
        members: int = 1,
        role: Role = "member",
    ) -> bytes:
        """The next envelope, newer than every one before it; `members` are in the mesh. One that
        serves nothing says so by its role.
        """
        self._count += 1
        announcement = Announcement(
            sequence=(self._boot, self._count),
            issued_at=now,
            lifetime=announcements.lifetime(members),
            name=self._name,
            version=__version__,
            role=role,
            resources=resources,
            models=tuple(models),
            held=tuple(held),
            backends=tuple(backends)[:MAX_BACKENDS],
            packages=tuple(packages),
            addresses=tuple(addresses[:32]),
        )
        return announcements.announce(announcement, self._key, self._credential)


class Members:
    """What the network calls when peers come, go, announce and ask (net/handlers.py)."""

    def __init__(
        self,
        inventory: Inventory,
        *,
        mesh_key: bytes,
        journal: Journal,
        clock: Callable[[], float],
        answer: Callable[[InferenceRequest, PeerId], Answer],
        look: Callable[[Query, PeerId], Awaitable[Reply]],
        load: Callable[[], tuple[ModelLoad, ...]],
        heard_load: Callable[[PeerId, Sequence[ModelLoad]], None],
        forget: Callable[[PeerId], None],
        changed: Callable[[], None],
    ) -> None:
        self.connected: dict[PeerId, Member] = {}
        self.know: Callable[[PeerId, Sequence[str]], None] | None = None
        """Told of each address that is heard; the network's, once it is up."""
        self.redeems: Callable[[Invite, bytes], Awaitable[Credential]] | None = None
        """Gives memberships to newcomers, once this node can."""
        self.told: Callable[[Signed], None] | None = None
        """Told of each newer revocation, to keep it."""
        self.is_out: Callable[[], bool] = lambda: False
        """Whether this node was revoked itself; the network's, once it is up."""
        self.revocation = NOTHING
        """Whose announcements are refused."""
        self._inventory = inventory
        self._mesh_key = mesh_key
        self._journal = journal
        self._clock = clock
        self._answer = answer
        self._look = look
        self._load = load
        self._heard_load = heard_load
        self._forget = forget
        self._changed = changed
        self._paces: dict[PeerId, Allowance] = {}
        """How often each author may still be heard."""

    def snapshot(self) -> Sequence[bytes]:
        return [offer.envelope for offer in self._inventory.offers()]

    def keep(self, envelope: bytes) -> None:
        """Folds in this node's own envelope."""
        self._inventory.apply(announcements.read(envelope, self._mesh_key, self._clock()))

    def holds(self, envelope: bytes) -> bool:
        return self._inventory.holds(envelope)

    def heard(self, envelope: bytes) -> bool:
        """Folds an envelope in; False where its author says more than it may, so that it goes no
        further. Raises RemoteError where it is not valid.
        """
        now = self._clock()
        offer = announcements.read(envelope, self._mesh_key, now, self.revocation)
        known = self._inventory.get(offer.peer)
        if self._inventory.is_news(offer):
            if not self._paces.setdefault(offer.peer, Allowance(BURST, REFILL)).take(now):
                return False
            self._inventory.apply(offer)
            self._note(offer, known)
            self._changed()
        return True

    def answer(self, request: InferenceRequest, asker: Member) -> Answer:
        """A peer's request is answered by this node's own models only, so that none goes round."""
        return self._answer(request, asker.peer)

    async def look(self, query: Query, asker: Member) -> Reply:
        """As `answer`."""
        return await self._look(query, asker.peer)

    def load(self) -> tuple[ModelLoad, ...]:
        return self._load()

    def heard_load(self, peer: PeerId, loads: tuple[ModelLoad, ...]) -> None:
        if self._inventory.get(peer) is not None:  # nothing is asked of any other
            self._heard_load(peer, loads)

    def suspected(self, peer: PeerId, reason: str) -> None:
        self._inventory.suspect(peer, silent=True)
        self._changed()
        self._journal.info(
            "peer_suspected", f"{peer} is suspect: {reason}", peer=peer, reason=reason
        )

    def revived(self, peer: PeerId) -> None:
        self._inventory.trust(peer)
        self._changed()
        self._journal.info("peer_revived", f"{peer} answers again", peer=peer)

    async def redeem(self, invite: Invite, peer: bytes) -> Credential:
        """The membership of a newcomer; a holder of the mesh key gives it."""
        if self.redeems is None:
            raise Unavailable("this node is still starting")
        return await self.redeems(invite, peer)

    def revoked(self, signed: Signed, revoked: Revoked) -> None:
        """Forgets who is out, and refuses what they announce from now on. Where that is this node,
        all others are out of its reach.
        """
        self.revocation = revoked
        for offer in self._inventory.offers():
            if self.is_out() or revoked.is_revoked(author_of(offer.envelope)):
                self._inventory.forget(offer.peer)
                self._paces.pop(offer.peer, None)
                self._forget(offer.peer)
                if self.know is not None:
                    self.know(offer.peer, ())
        if self.told is not None:
            self.told(signed)
        self._changed()

    def joined(self, member: Member) -> None:
        self.connected[member.peer] = member
        self._changed()
        self._inventory.trust(member.peer)
        self._journal.info(
            "peer_joined", f"{member.peer} is connected", peer=member.peer, role=member.role
        )

    def left(self, peer: PeerId, reason: str) -> None:
        self.connected.pop(peer, None)
        self._journal.info("peer_left", f"{peer} is gone: {reason}", peer=peer, reason=reason)

    def expire(self) -> None:
        """Forgets the members whose announcements have lapsed."""
        for peer in self._inventory.expire(self._clock()):
            self._paces.pop(peer, None)
            self._forget(peer)
            if self.know is not None:
                self.know(peer, ())
            self._journal.info("member_lapsed", f"{peer} has not announced itself", peer=peer)

    def _note(self, offer: Offer, known: Offer | None) -> None:
        if self.know is not None:
            self.know(offer.peer, offer.announcement.addresses)
        if known and known.announcement.sequence[0] != offer.announcement.sequence[0]:
            self._forget(offer.peer)  # it was started again, and remembers nothing
        before = {model.id for model in known.announcement.models} if known else set()
        new = [model.id for model in offer.announcement.models if model.id not in before]
        for model in new[:MAX_NOTED]:
            self._journal.info(
                "model_offered", f"{offer.announcement.name} serves {model}",
                model=model, peer=offer.peer,
            )  # fmt: skip


async def announce(
    publish: Callable[[bytes], Awaitable[None]],
    make: Callable[[], bytes],
    changed: Callable[[], trio.Event],
    *,
    pause: Callable[[], float],
    journal: Journal,
) -> None:
    """Publishes what `make` returns, at every change and after every `pause`, until cancelled.
    `changed` gives the event that the next change will set.
    """
    while True:
        waiting, last = changed(), trio.current_time()
        try:
            await publish(make())
        except RemoteError as error:
            journal.warning("announce_failed", f"the announcement was not sent: {error}")
        with trio.move_on_after(pause()):
            await waiting.wait()
            await trio.sleep_until(max(trio.current_time() + SETTLE, last + GAP))
