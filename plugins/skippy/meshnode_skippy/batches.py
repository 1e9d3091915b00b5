"""How many of the sequences that write go into one batch, so that all of them together go fastest.

With b rows a batch and g batches in flight, a token of every sequence takes as long as the slowest
stage needs for g batches, or as long as one batch needs around the ring, whichever is more. How
long a batch takes by its rows is measured: two rows may cost more than twice one, or hardly more
than one. A size is tried, the largest first, where it might be the best by what is known of others:
between two known ones on a line, below all of them in proportion, above them no slower. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TRIALS = 3
"""Batches of a size before it is believed."""
WORTH, LOST = 1.1, 1.5
"""Of the best: what a size may come to by a guess to be tried, and what it may come to in its first
trials to be tried once more. A trial costs all who write.
"""
AGAIN = 1024
"""Batches after which only the last size is believed: streams have grown, machines are busier."""
_SMOOTH = 0.2
_OUTLIER = 4.0


@dataclass(slots=True)
class _Size:
    slowest: float
    around: float
    seen: int = 1

    def observe(self, slowest: float, around: float) -> None:
        """The least of the first trials, so that no hiccup decides; then a moving average."""
        self.seen += 1
        if self.seen <= TRIALS:
            self.slowest, self.around = min(self.slowest, slowest), min(self.around, around)
        else:
            self.slowest = _blend(self.slowest, slowest)
            self.around = _blend(self.around, around)

    def between(self, other: _Size, share: float) -> _Size:
        """On the line from another size to this one."""
        return _Size(
            other.slowest + share * (self.slowest - other.slowest),
            other.around + share * (self.around - other.around),
        )


class Batches:
    """Learns from the batches that came around."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._count = 0
        self._together: dict[int, int] = {}
        """What was found since the last batch came around: it is asked for often."""

    def observe(self, writing: int, *, slowest: float, around: float) -> None:
        """A batch of so many writing rows, and no others: seconds of its slowest stage, and
        those around the ring, without what it waited for others before it.
        """
        self._count += 1
        self._together.clear()
        if writing in self._sizes:
            self._sizes[writing].observe(slowest, around)
        else:
            self._sizes[writing] = _Size(slowest, around)
        if self._count % AGAIN == 0:
            self._sizes = {writing: self._sizes[writing]}

    def together(self, writing: int) -> int:
        """How many of so many go into a batch now: the best known, or one that is to be tried."""
        if writing not in self._together:
            self._together[writing] = self._found(writing)
        return self._together[writing]

    def _found(self, writing: int) -> int:
        sizes = choices(writing)
        if len(sizes) == 1 or not self._sizes:
            return sizes[0]
        cycles = {size: self._cycle(size, writing) for size in sizes}
        seen = {size: self._sizes[size].seen if size in self._sizes else 0 for size in sizes}
        best = min((cycles[size] for size in sizes if seen[size]), default=math.inf)
        tried = [
            size
            for size in sizes
            if seen[size] < TRIALS and cycles[size] <= (LOST if seen[size] else WORTH) * best
        ]
        if tried:
            return min(tried, key=lambda size: (seen[size], -size))
        return min(sizes, key=lambda size: (cycles[size], size))

    def flights(self, writing: int) -> int:
        """Batches in flight when all of them write."""
        return math.ceil(writing / self.together(writing)) if writing else 1

    def _cycle(self, size: int, writing: int) -> float:
        guessed, flights = self._guess(size), math.ceil(writing / size)
        return max(flights * guessed.slowest, guessed.around)

    def _guess(self, size: int) -> _Size:
        """What is known of a size, or to be thought of it."""
        if size in self._sizes:
            return self._sizes[size]
        under = max((one for one in self._sizes if one < size), default=0)
        over = min((one for one in self._sizes if one > size), default=under)
        least = self._sizes.get(under, _Size(0.0, 0.0))
        share = (size - under) / (over - under) if over > under else 1.0
        return self._sizes[over].between(least, share)


def choices(writing: int) -> list[int]:
    """Sizes that cut so many into batches of about the same size: for each number of batches the
    smallest, the whole first.
    """
    return sorted({math.ceil(writing / count) for count in range(1, writing + 1)}, reverse=True)


def _blend(old: float, new: float) -> float:
    return old + _SMOOTH * (min(new, _OUTLIER * old) - old)
