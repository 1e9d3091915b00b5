"""Who offers what: signed announcements, and the view that they fold into.

An announcement travels in an envelope with its author's credential, so it proves itself, by
gossip or in a snapshot (specs/inventory/README.md). Folding is idempotent and ignores order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.admission import may_publish
from p2p_mesh.core.invite import Credential, seal, unseal
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Announcement
from p2p_mesh.core.wire import INVENTORY_LIMIT, Message, decode, encode
from p2p_mesh.errors import Refused, RemoteError

KIND = "announcement"
"""What the signature of an envelope covers, beside the announcement."""

SKEW = 60.0
"""Seconds that a member's clock may be ahead of ours."""

MAX_MEMBERS = 10_000
MAX_ENVELOPE = 96 << 10


class AskSnapshot(Message, frozen=True, tag="ask"):
    """Asks for the newest announcement of every member."""


class Announced(Message, frozen=True, kw_only=True, tag="announced"):
    """One envelope of a snapshot, as its author sealed it."""

    envelope: Annotated[bytes, Meta(max_length=MAX_ENVELOPE)]


@dataclass(frozen=True, slots=True)
class Offer:
    """A member's newest announcement, as it came."""

    peer: PeerId
    announcement: Announcement
    envelope: bytes
    expires: float


def announce(announcement: Announcement, key: Ed25519PrivateKey, credential: Credential) -> bytes:
    """The envelope in which an announcement travels."""
    return seal(KIND, encode(announcement), key, credential)


def read(envelope: bytes, mesh: bytes, now: float) -> Offer:
    """What an announcement's envelope says, all of it checked. Raises RemoteError."""
    if len(envelope) > MAX_ENVELOPE:
        raise RemoteError(f"an announcement of {len(envelope)} bytes; {MAX_ENVELOPE} is the limit")
    author, payload = unseal(KIND, envelope, mesh, now)
    if not may_publish(author.role, "inventory"):
        raise Refused(f"a {author.role} announces nothing")
    announcement: Announcement = decode(payload, Announcement)
    if max(announcement.issued_at, announcement.sequence[0] / 1000) > now + SKEW:
        raise Refused("an announcement from the future; one of the two clocks is wrong")
    expires = min(now, announcement.issued_at + SKEW) + announcement.lifetime
    if expires <= now:
        raise Refused("an announcement that has lapsed")
    return Offer(author.peer, announcement, envelope, expires)


class Inventory:
    """The newest offer of each member."""

    def __init__(self) -> None:
        self._offers: dict[PeerId, Offer] = {}
        self._suspects: set[PeerId] = set()

    def apply(self, offer: Offer) -> bool:
        """Takes an offer in; True if it was news. Gossip repeats, so an offer replaces."""
        held = self._offers.get(offer.peer)
        if held is not None and _newness(held) >= _newness(offer):
            return False
        if held is None and len(self._offers) >= MAX_MEMBERS:
            return False
        self._offers[offer.peer] = offer
        return True

    def expire(self, now: float) -> tuple[PeerId, ...]:
        """Drops what has lapsed, and says whose it was."""
        gone = tuple(peer for peer, offer in self._offers.items() if offer.expires <= now)
        for peer in gone:
            self.forget(peer)
        return gone

    def forget(self, peer: PeerId) -> None:
        self._offers.pop(peer, None)
        self._suspects.discard(peer)

    def suspect(self, peer: PeerId) -> None:
        """A stream to it failed: routed around until it is heard of again."""
        if peer in self._offers:
            self._suspects.add(peer)

    def trust(self, peer: PeerId) -> None:
        self._suspects.discard(peer)

    def is_suspect(self, peer: PeerId) -> bool:
        return peer in self._suspects

    def get(self, peer: PeerId) -> Offer | None:
        return self._offers.get(peer)

    def offers(self) -> tuple[Offer, ...]:
        """All offers, by peer id, so that equal inventories look equal."""
        return tuple(self._offers[peer] for peer in sorted(self._offers))


def _newness(offer: Offer) -> tuple[tuple[int, int], bytes]:
    # Bytes break the tie where a node, against the rules, used a sequence twice: every node
    # then keeps the same one, whatever came first.
    return offer.announcement.sequence, offer.envelope


assert MAX_ENVELOPE < INVENTORY_LIMIT
