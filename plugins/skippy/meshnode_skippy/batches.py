"""How many of the sequences that write go into one batch, so that all of them together go fastest.

With b rows a batch and g batches in flight, a token of every sequence takes as long as the slowest
stage needs for g batches, or as long as one batch needs around the ring, whichever is more. How
long a batch takes by its rows is measured: two rows may cost more than twice one, or hardly more
than one. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

TRIALS = 3
"""Batches of a size before it is believed."""
AGAIN = 1024
"""Batches after which sizes that lost are tried anew: streams have grown, machines are busier."""
_SMOOTH = 0.2
_OUTLIER = 4.0


@dataclass(slots=True)
class _Size:
    slowest: float
    around: float
    seen: int = 1


class Batches:
    """Learns from the batches that came around."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}
        self._count = 0

    def observe(self, writing: int, *, slowest: float, around: float) -> None:
        """A batch of so many writing rows, and no others: seconds of its slowest stage, and
        those around the ring, without what it waited for others before it.
        """
        self._count += 1
        if self._count % AGAIN == 0:
            for size in self._sizes.values():
                size.seen = min(size.seen, TRIALS - 1)
        known = self._sizes.get(writing)
        if known is None:
            self._sizes[writing] = _Size(slowest, around)
            return
        known.seen += 1
        known.slowest = _blend(known.slowest, slowest)
        known.around = _blend(known.around, around)

    def together(self, writing: int) -> int:
        """How many of so many go into a batch now: the best known, or one that is to be tried."""
        sizes = choices(writing)
        for size in sizes:
            known = self._sizes.get(size)
            if known is None or known.seen < TRIALS:
                return size
        return min(sizes, key=lambda size: (self._cycle(size, writing), size))

    def flights(self, writing: int) -> int:
        """Batches in flight when all of them write."""
        return math.ceil(writing / self.together(writing)) if writing else 1

    def _cycle(self, size: int, writing: int) -> float:
        known, flights = self._sizes[size], math.ceil(writing / size)
        return max(flights * known.slowest, known.around)


def choices(writing: int) -> list[int]:
    """Sizes that cut so many into batches of about the same size: for each number of batches the
    smallest, the whole first.
    """
    return sorted({math.ceil(writing / count) for count in range(1, writing + 1)}, reverse=True)


def _blend(old: float, new: float) -> float:
    return old + _SMOOTH * (min(new, _OUTLIER * old) - old)
