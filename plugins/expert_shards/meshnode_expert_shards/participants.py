"""Who takes part in serving a model by expert shards, which part each has, and when a change of
that counts. Pure: the same announcements and the same ranking give the same parts on every node.

A node takes part by announcing, with the model file that it holds, how many bytes of experts it has
room for. The parts are those of all who take part, sorted by peer id; where there is no assignment
for all of them, those with the least room are left out, one after the other.

What has changed counts when it has lasted SETTLE seconds; so a node that is started again changes
nothing. Then the nodes go over to their new parts one after the other, each when it is quiet. Where
a node that is gone leaves experts that nobody else has, whatever is under way is waited for, and no
longer than PATIENCE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from p2p_mesh.core.experts.assignment import MAX_PARTS, Assignment, Impossible, Part, assign
from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Announcement

SETTLE = 45.0
"""Seconds that a change has to last."""
APART = 15.0
"""Seconds between two nodes that go over to other parts: each takes a while to load."""
QUIET = 5.0
"""Seconds without an answer after which a node is quiet."""
PATIENCE = 60.0
"""Seconds that answers have to end where experts are missing."""

TRIES = 8
"""Numbers of participants for which parts are looked for."""


@dataclass(frozen=True, slots=True, order=True)
class Participant:
    peer: PeerId
    room: int
    """Bytes of experts that it can hold."""


def taking_part(
    peers: Iterable[tuple[PeerId, Announcement]], digests: Collection[str]
) -> tuple[Participant, ...]:
    """The peers that announce shards of a model, by the digests under which it may be known."""
    return tuple(
        Participant(peer, held.shards)
        for peer, announced in peers
        for held in announced.held
        if held.shards and held.digest in digests
    )


def gathered(participants: Iterable[Participant]) -> tuple[Participant, ...]:
    """Sorted, each once: with the most room that it announces."""
    by_peer = {one.peer: one for one in sorted(participants)}
    return tuple(by_peer[peer] for peer in sorted(by_peer))


@dataclass(frozen=True, slots=True)
class Division:
    """Who has which experts."""

    participants: tuple[Participant, ...]
    """Those that have a part, sorted."""
    assignment: Assignment

    def number(self, peer: PeerId) -> int | None:
        """Of the part that a peer has."""
        peers = [one.peer for one in self.participants]
        return peers.index(peer) if peer in peers else None

    def part(self, peer: PeerId) -> Part | None:
        number = self.number(peer)
        return None if number is None else self.assignment.parts[number]

    def leaves_holes(self, left: Collection[PeerId]) -> bool:
        """Whether some expert is on none of the nodes that are left."""
        parts = [
            part
            for one, part in zip(self.participants, self.assignment.parts, strict=True)
            if one.peer in left
        ]
        return any(
            held < everything
            for held, everything in zip(
                _held(parts, self._layers), _held(self.assignment.parts, self._layers), strict=True
            )
        )

    @property
    def _layers(self) -> int:
        return len(self.assignment.parts[0].experts)


def _held(parts: Sequence[Part], layers: int) -> list[frozenset[int]]:
    """The experts that some parts have together, by layer."""
    return [
        frozenset(expert for part in parts for expert in part.experts[layer])
        for layer in range(layers)
    ]


def divide(
    ranking: Ranking, layout: Layout, participants: Sequence[Participant], *, min_mass: float
) -> Division | Impossible:
    """The parts of as many of the participants as can be: the first reason, where it is of none.
    Raises ModelError for a ranking of another model.
    """
    left = sorted(participants, key=lambda one: (-one.room, one.peer))[:MAX_PARTS]
    first: Impossible | None = None
    for count in _counts(left):
        chosen = tuple(sorted(left[:count]))
        room = [one.room for one in chosen]
        found = assign(ranking, count, layout=layout, room=room, min_mass=min_mass)
        if isinstance(found, Assignment):
            return Division(chosen, found)
        first = first or found
    return first or Impossible("no node takes part")


def _counts(falling: Sequence[Participant]) -> Sequence[int]:
    """How many of them there may be, falling: all, and else fewer only where that makes more room.
    Of many such numbers, some: each try takes a while.
    """
    if not falling:
        return ()
    steps = [number for number, (more, less) in enumerate(pairwise(falling), 1)
             if more.room > less.room]  # fmt: skip
    counts = [len(falling), *reversed(steps)]
    if len(counts) <= TRIES:
        return counts
    return [counts[number * (len(counts) - 1) // (TRIES - 1)] for number in range(TRIES)]


def key(model: str, part: Part, number: int, parts: int) -> str:
    """A short name for a shard: other experts, or another place among the parts, have another."""
    text = repr((model, part.experts, number, parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Change:
    """Whether those who take part are still those that a node went by, and since when not."""

    def __init__(self, participants: Sequence[Participant], now: float) -> None:
        self._known = self._seen = tuple(participants)
        self._since = now

    @property
    def known(self) -> tuple[Participant, ...]:
        """Those that it goes by."""
        return self._known

    def see(self, participants: Sequence[Participant], now: float) -> None:
        if tuple(participants) != self._seen:
            self._seen, self._since = tuple(participants), now

    def settled(self, now: float, settle: float = SETTLE) -> tuple[Participant, ...] | None:
        """Those of now, once they are others, and have been for long enough."""
        if self._seen == self._known or now - self._since < settle:
            return None
        return self._seen

    def accept(self, participants: Sequence[Participant]) -> None:
        """These are gone by from now on: it made no difference."""
        self._known = tuple(participants)


@dataclass(frozen=True, slots=True)
class Turn:
    """When a node may go over to another part."""

    since: float
    """When the part was known to be another."""
    number: int
    """Of its place among those that go over."""
    is_urgent: bool
    """Experts are missing."""

    def has_come(self, now: float, *, is_busy: bool, idle_since: float) -> bool:
        """`idle_since`: when the last answer ended."""
        due = self.since + self.number * APART
        if now < due:
            return False
        if self.is_urgent:
            return not is_busy or now >= due + PATIENCE
        return not is_busy and now - idle_since >= QUIET
