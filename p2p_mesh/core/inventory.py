"""Who offers what: signed announcements, and the view that they fold into.

An announcement travels in an envelope with its author's credential, so it proves itself, by
gossip or in a snapshot (specs/inventory/README.md). Folding is idempotent and ignores order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.admission import may_publish
from p2p_mesh.core.invite import Credential, seal, unseal
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Announcement
from p2p_mesh.core.revocation import NOTHING, Revoked
from p2p_mesh.core.wire import INVENTORY_LIMIT, Message, decode, encode
from p2p_mesh.errors import Refused, RemoteError

KIND = "announcement"
"""What the signature of an envelope covers, beside the announcement."""

SKEW = 60.0
"""Seconds that a member's clock may be ahead of ours."""

HEARTBEAT = 20.0
"""Seconds between two announcements of a node of which nothing changed, in a small mesh."""

LARGE = 600
"""Members, beyond which the heartbeat grows with the root of their number: with the number itself,
what died silently would stay listed for days.
"""
EVERY = 2.0
"""Seconds between two announcements of anybody, in a larger one: hearing one costs every member
milliseconds, so there the heartbeat is so many seconds for each member.
"""

MAX_MEMBERS = 10_000
MAX_ENVELOPE = 96 << 10
MAX_BYTES = 128 << 20
"""Of all envelopes that are kept."""

BULKY = 16 << 10
"""Bytes of an envelope, beyond which it counts as bulky: all those together may have"""
MAX_BULK = MAX_BYTES // 4
"""bytes. Hardly any node has so many models, and who says much takes no room from others.
"""


class AskSnapshot(Message, frozen=True, kw_only=True, tag="ask"):
    """Asks for the newest announcement of every member."""

    updates: bool = False
    """And from then on for each that comes, in place of `end`."""


class Announced(Message, frozen=True, kw_only=True, tag="announced"):
    """One envelope, as its author sealed it."""

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


def heartbeat(members: int) -> float:
    """Seconds between two announcements of one node, in a mesh of so many."""
    if members > LARGE:
        return EVERY * math.sqrt(members * LARGE)
    return max(HEARTBEAT, EVERY * members)


def lifetime(members: int) -> float:
    """Seconds that an announcement holds: two of its successors may get lost."""
    return 3 * heartbeat(members)


def pause(members: int, rng: Random) -> float:
    """Seconds until the next announcement: not all nodes are to speak at once."""
    return heartbeat(members) * (0.8 + 0.2 * rng.random())


def read(envelope: bytes, mesh: bytes, now: float, revoked: Revoked = NOTHING) -> Offer:
    """What an announcement's envelope says, all of it checked. Raises RemoteError."""
    if len(envelope) > MAX_ENVELOPE:
        raise RemoteError(f"an announcement of {len(envelope)} bytes; {MAX_ENVELOPE} is the limit")
    author, payload = unseal(KIND, envelope, mesh, now, revoked)
    if not may_publish(author.role, "inventory"):
        raise Refused(f"a {author.role} announces nothing: {author.peer} is one")
    announcement: Announcement = decode(payload, Announcement)
    if max(announcement.issued_at, announcement.sequence[0] / 1000) > now + SKEW:
        raise Refused(
            f"an announcement of {author.peer} from the future; one of the two clocks is wrong",
            reason="future",
        )
    expires = min(now, announcement.issued_at + SKEW) + announcement.lifetime
    if expires <= now:
        raise Refused(f"an announcement of {author.peer} that has lapsed", reason="expired")
    return Offer(author.peer, announcement, envelope, expires)


class Inventory:
    """The newest offer of each member, and which members are suspect."""

    def __init__(self) -> None:
        self._offers: dict[PeerId, Offer] = {}
        self._envelopes: set[bytes] = set()
        self._suspects: dict[PeerId, bool] = {}
        """With each, whether only a sign of life clears it."""
        self._sorted: tuple[Offer, ...] | None = ()
        self._bytes = 0
        self._bulk = 0
        self._lasts: dict[PeerId, float] = {}
        """Until when anything may hold that each of them has announced."""
        self._past: OrderedDict[PeerId, tuple[tuple[int, int], float]] = OrderedDict()
        """The newest sequence of each that was forgotten, and as long as that matters."""
        self._crowded_out: dict[PeerId, None] = {}

    def __len__(self) -> int:
        return len(self._offers)

    def apply(self, offer: Offer) -> bool:
        """Takes an offer in; True if it was news. Gossip repeats, so an offer replaces. Where there
        is no more room, those go that would lapse soonest: nobody new is shut out.
        """
        is_news = self.is_news(offer)
        self._see(offer)
        if not is_news:
            return False
        self._remove(offer.peer)
        self._make_room(offer)
        self._add(offer)
        if not self._suspects.get(offer.peer):
            self._suspects.pop(offer.peer, None)
        return True

    def is_news(self, offer: Offer) -> bool:
        held = self._offers.get(offer.peer)
        if held is not None:
            return _newness(held) < _newness(offer)
        past = self._past.get(offer.peer)
        return past is None or past[0] < offer.announcement.sequence

    def holds(self, envelope: bytes) -> bool:
        """Whether an envelope is the newest of its author: it was checked when it came."""
        return envelope in self._envelopes

    def expire(self, now: float) -> tuple[PeerId, ...]:
        """Drops what has lapsed, and says whose it was, and who else had to go since last time."""
        gone = [peer for peer, offer in self._offers.items() if offer.expires <= now]
        for peer in gone:
            self.forget(peer)
        for peer in [peer for peer, (_, until) in self._past.items() if until <= now]:
            del self._past[peer]
        gone += [peer for peer in self._crowded_out if peer not in self._offers]
        self._crowded_out.clear()
        return tuple(dict.fromkeys(gone))

    def forget(self, peer: PeerId) -> None:
        """Lists it no more. Its sequence is kept: whoever repeats what it said before must not
        bring it back.
        """
        offer = self._remove(peer)
        if offer is not None:
            self._past[peer] = offer.announcement.sequence, self._lasts.pop(peer)
            if len(self._past) > MAX_MEMBERS:
                self._past.popitem(last=False)
        self._suspects.pop(peer, None)

    def _see(self, offer: Offer) -> None:
        """Minds until when its author may be listed by what it has said."""
        peer, until = offer.peer, _until(offer)
        if peer in self._offers:
            self._lasts[peer] = max(self._lasts[peer], until)
        elif peer in self._past:
            sequence, before = self._past[peer]
            self._past[peer] = sequence, max(before, until)

    def _add(self, offer: Offer) -> None:
        _, until = self._past.pop(offer.peer, (None, _until(offer)))
        self._lasts.setdefault(offer.peer, until)
        self._offers[offer.peer] = offer
        self._envelopes.add(offer.envelope)
        self._sorted = None
        self._bytes += len(offer.envelope)
        self._bulk += _bulk(offer)

    def _remove(self, peer: PeerId) -> Offer | None:
        if (offer := self._offers.pop(peer, None)) is not None:
            self._envelopes.discard(offer.envelope)
            self._sorted = None
            self._bytes -= len(offer.envelope)
            self._bulk -= _bulk(offer)
        return offer

    def _make_room(self, offer: Offer) -> None:
        while _bulk(offer) and self._bulk + _bulk(offer) > MAX_BULK:
            self._crowd_out(one for one in self._offers.values() if _bulk(one))
        size = len(offer.envelope)
        while len(self._offers) >= MAX_MEMBERS or self._bytes + size > MAX_BYTES:
            self._crowd_out(self._offers.values())

    def _crowd_out(self, offers: Iterable[Offer]) -> None:
        peer = min(offers, key=lambda one: one.expires).peer
        self.forget(peer)
        self._crowded_out[peer] = None

    def suspect(self, peer: PeerId, *, silent: bool = False) -> None:
        """It failed somebody: routed around until it is heard of again. Where it is `silent`, what
        others pass on of it is no sign that it is there, and only `trust` clears it.
        """
        if peer in self._offers:
            self._suspects[peer] = silent or self._suspects.get(peer, False)

    def trust(self, peer: PeerId) -> None:
        self._suspects.pop(peer, None)

    def is_suspect(self, peer: PeerId) -> bool:
        return peer in self._suspects

    def get(self, peer: PeerId) -> Offer | None:
        return self._offers.get(peer)

    def offers(self) -> tuple[Offer, ...]:
        """All offers, by peer id, so that equal inventories look equal."""
        if self._sorted is None:
            self._sorted = tuple(self._offers[peer] for peer in sorted(self._offers))
        return self._sorted


def _bulk(offer: Offer) -> int:
    """The bytes of its envelope, where that is bulky."""
    return len(offer.envelope) if len(offer.envelope) > BULKY else 0


def _until(offer: Offer) -> float:
    """When it holds for nobody any more, however late it comes."""
    about = offer.announcement
    return max(offer.expires, about.issued_at + SKEW + about.lifetime)


def _newness(offer: Offer) -> tuple[tuple[int, int], bytes]:
    # Bytes break the tie where a node, against the rules, used a sequence twice: every node
    # then keeps the same one, whatever came first.
    return offer.announcement.sequence, offer.envelope


assert MAX_ENVELOPE < INVENTORY_LIMIT
