"""Which piece is asked of which peer next, and the messages in which that is done
(specs/artifacts/README.md).

Theory of operation:

1. Every file has the SHA-256 of each of its pieces, so a piece may come from anybody who holds the
   file. The file that the fewest peers hold goes first.
2. A peer has a window of pieces that it is asked for and that are not checked yet. It grows with
   each good piece, so a slow peer never has many.
3. Who sends a bad piece is never asked again, and what it was asked for goes to others. Whoever
   fails otherwise is asked again after a rest that grows.
4. When no piece is left that nobody was asked for, a peer that waits is given one that another
   will probably have later than it would; at most two are asked for the same.

Pure: the caller says what happened and when, and performs what `choose` says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from random import Random
from typing import Annotated

from msgspec import Meta

from p2p_mesh.core.backoff import delay
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PIECE, Sha256
from p2p_mesh.core.records import Count
from p2p_mesh.core.wire import Message, frame

MAX_RANGE = PIECE
"""Bytes of one answer."""

CHUNK = 65_501
"""Bytes of one `data` message: its frame then is just as long as one of Yamux may be, and comes in
one piece.
"""

MAX_HELD = 8192
"""Files that one `held` names."""

MAX_ASKED = 16
"""Ranges that are asked for on one stream and not answered yet."""

WINDOW = 8
"""The same, as this node asks, at most;"""
FIRST_WINDOW = 2
"""and at first."""

MOST_ASKERS = 2
"""Peers that are asked for the same piece at a time."""

FAILURES = 6
"""Of a peer, one after the other, before it is asked no more."""

LONGEST_REST = 30.0
"""Seconds between two tries with a peer, at most."""

FAIR = 2.0
"""Seconds that a peer has for a piece, before another is asked for it too."""

_SMOOTHING = 0.3


class Get(Message, frozen=True, kw_only=True, tag="get"):
    """Asks for a range of the file with that SHA-256. Several may be asked for before the first
    answer has ended; answers come in that order.
    """

    sha256: Sha256
    offset: Count = 0
    length: Annotated[int, Meta(ge=1, le=MAX_RANGE)]


class Found(Message, frozen=True, kw_only=True, tag="found"):
    """Begins an answer: how large the file is. As much of the range as it has follows as `data`."""

    size: Count


class Data(Message, frozen=True, kw_only=True, tag="data"):
    """The next bytes of an answer."""

    chunk: memoryview
    """Of the frame, which bounds it: not copied."""


def data_frames(data: memoryview) -> bytes:
    """Data as it stands in a stream: frames of `data` messages, with one copy of it made."""
    parts: list[bytes | memoryview] = []
    for start in range(0, len(data), CHUNK):
        chunk = data[start : start + CHUNK]
        parts += (_head(len(chunk)), chunk)
    return b"".join(parts)


@lru_cache(maxsize=64)
def _head(length: int) -> bytes:
    """What stands before a chunk of that length, which is the end of its frame."""
    whole = frame(Data(chunk=memoryview(bytes(length))))
    return whole[: len(whole) - length]


class Lacking(Message, frozen=True, tag="lacking"):
    """The whole of an answer: that file is not served here."""


class AskHeld(Message, frozen=True, kw_only=True, tag="ask_held"):
    """Which files of a package are served here? `held` comes back, in its turn."""

    manifest: Sha256


class HeldFiles(Message, frozen=True, kw_only=True, tag="held"):
    files: Annotated[tuple[Sha256, ...], Meta(max_length=MAX_HELD)] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a file, and where it stands there."""

    file: Digest
    number: int
    offset: int
    length: int


def pieces(file: Digest, size: int, numbers: Iterable[int]) -> tuple[Piece, ...]:
    """The pieces of a file of that size with these numbers."""
    return tuple(
        Piece(file, number, number * PIECE, min(PIECE, size - number * PIECE)) for number in numbers
    )


@dataclass(eq=False, slots=True)
class _Source:
    """A peer, and what it was asked for."""

    held: frozenset[Digest] = frozenset()
    is_met: bool = False
    asked: dict[Piece, float] = field(default_factory=dict)
    """When, in the order in which the answers come."""
    window: int = FIRST_WINDOW
    pace: float | None = None
    """Seconds for a piece; None: none came yet."""
    last: float = -inf
    """When the last piece came."""
    failures: int = 0
    rests_until: float = -inf

    def expects(self, piece: Piece, now: float) -> float:
        """When a piece that it was asked for is probably here."""
        if self.pace is None:
            return inf if now - self.asked[piece] > FAIR else now
        place = list(self.asked).index(piece) + 1
        return max(self.last, min(self.asked.values())) + place * self.pace


class Schedule:
    """What is still to be fetched, and of whom each piece is asked."""

    def __init__(self, wanted: Sequence[Piece], rng: Random) -> None:
        self._rng = rng
        self._left: dict[Digest, set[Piece]] = {}
        self._fresh: dict[Digest, deque[Piece]] = {}
        self._sources: dict[PeerId, _Source] = {}
        self.add(wanted)

    def add(self, wanted: Iterable[Piece]) -> None:
        for piece in wanted:
            self._left.setdefault(piece.file, set()).add(piece)
            self._fresh.setdefault(piece.file, deque()).append(piece)

    @property
    def is_done(self) -> bool:
        return not self._left

    def is_wanted(self, piece: Piece) -> bool:
        return piece in self._left.get(piece.file, ())

    def is_whole(self, file: Digest) -> bool:
        return file not in self._left

    def is_of_use(self, peer: PeerId) -> bool:
        """Whether it serves a file of which something is missing, and may be asked."""
        source = self._sources[peer]
        return source.rests_until < inf and not source.held.isdisjoint(self._left)

    def has_met(self, peer: PeerId) -> bool:
        """Whether it ever said which files it serves."""
        return peer in self._sources and self._sources[peer].is_met

    def rests_until(self, peer: PeerId) -> float:
        """When it may be asked again; inf: never."""
        return self._sources[peer].rests_until if peer in self._sources else -inf

    def meet(self, peer: PeerId, held: Collection[Digest]) -> None:
        """A peer says which files it serves; what it said before does not hold any more."""
        source = self._sources.setdefault(peer, _Source())
        source.held, source.is_met = frozenset(held), True

    def lacks(self, peer: PeerId, piece: Piece) -> None:
        """A peer does not serve the file of a piece that it was asked for, after all."""
        source = self._sources[peer]
        source.held -= {piece.file}
        source.asked.pop(piece, None)
        self._return(piece)

    def choose(self, peer: PeerId, now: float) -> Piece | None:
        """What to ask a peer for now; None: nothing, for the time being. It counts as asked."""
        source = self._sources[peer]
        if now < source.rests_until or len(source.asked) >= source.window:
            return None
        piece = self._next_fresh(source) or self._next_late(source, now)
        if piece is not None:
            source.asked[piece] = now
        return piece

    def _next_fresh(self, source: _Source) -> Piece | None:
        files = [file for file, fresh in self._fresh.items() if fresh and file in source.held]
        if not files:
            return None
        # The first of those that the fewest hold: pieces then follow one another in a file.
        return self._fresh[min(files, key=self._holders)].popleft()

    def _holders(self, file: Digest) -> int:
        return sum(file in one.held and one.rests_until < inf for one in self._sources.values())

    def _next_late(self, source: _Source, now: float) -> Piece | None:
        """The piece that another will have latest, if this one would probably have it before."""
        due = now + (source.pace or 0.0) * (len(source.asked) + 1)
        late = {
            piece: other.expects(piece, now)
            for other in self._sources.values()
            for piece in other.asked
            if piece.file in source.held
            and piece not in source.asked
            and self.is_wanted(piece)
            and self._askers(piece) < MOST_ASKERS
        }
        piece = max(late, key=lambda one: late[one], default=None)
        return piece if piece is not None and late[piece] > due + FAIR else None

    def _askers(self, piece: Piece) -> int:
        return sum(piece in one.asked for one in self._sources.values())

    def arrived(self, peer: PeerId, piece: Piece, now: float) -> bool:
        """A piece came, and is good. False: another was faster."""
        source = self._sources[peer]
        took = now - max(source.asked.pop(piece, now), source.last)
        past = took if source.pace is None else source.pace
        source.pace = past + _SMOOTHING * (took - past)
        source.last, source.failures = now, 0
        source.window = min(WINDOW, source.window + 1)
        if not self.is_wanted(piece):
            return False
        left = self._left[piece.file]
        left.discard(piece)
        if not left:
            del self._left[piece.file]
        return True

    def failed(self, peer: PeerId, now: float, retry_after: float = 0.0) -> None:
        """A peer could not be asked, or its stream broke: it rests."""
        source = self._sources.setdefault(peer, _Source())
        self._release(source)
        source.window, source.last = FIRST_WINDOW, -inf
        pause = delay(source.failures, self._rng, most=LONGEST_REST)
        source.failures += 1
        is_over = source.failures >= FAILURES
        source.rests_until = inf if is_over else now + max(pause, retry_after)

    def drop(self, peer: PeerId) -> None:
        """A peer sent what is wrong, or is of no use: it is asked no more."""
        source = self._sources.setdefault(peer, _Source())
        source.rests_until = inf
        self._release(source)

    def _release(self, source: _Source) -> None:
        asked, source.asked = source.asked, {}
        for piece in reversed(asked):
            self._return(piece)

    def _return(self, piece: Piece) -> None:
        if self.is_wanted(piece) and not self._askers(piece):
            self._fresh[piece.file].appendleft(piece)
