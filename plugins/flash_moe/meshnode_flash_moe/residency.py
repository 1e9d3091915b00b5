"""Which experts stay in memory. Pure: it is told what is wanted, and says what goes.

Theory of operation:

1. Of each expert it is estimated how likely a token goes through it (`p`): how often that was so,
   less and less for what is long ago, and before anything is known as often as any other.
2. A call of r rows needs an expert of a layer with 1 - (1 - p)^r. So it is wanted again after so
   many calls on average, and a part of one: the layers come in their order. The expert that is
   wanted last goes first. While answers are written, this keeps what is used most; while a long
   prompt is read and all experts of each layer are wanted in turn, it keeps those that come next,
   where a cache that goes by age alone would miss every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEMORY = 256.0
"""Tokens after which what was seen counts for a third."""
PRIOR = 8.0
"""Tokens that the first guess is worth."""
SURE = 0.9
"""How likely an expert must be wanted to be read before the router has spoken."""
_SELDOM = 1e-4
_GONE = -1.0

Counts = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Change:
    """What goes, what comes: a layer's place and an expert of it."""

    leave: Sequence[tuple[int, int]]
    come: Sequence[tuple[int, int]]


class Residency:
    """The experts that are in memory, by the places of layers: 0 is the first with experts."""

    def __init__(self, sizes: Sequence[int], experts: int, used: int, room: int) -> None:
        """`sizes`: bytes of an expert of each layer. `room`: bytes for all that are in memory."""
        self.room = room
        self.taken = 0
        self._sizes = list(sizes)
        shape = len(sizes), experts
        self._here = np.zeros(shape, bool)
        self._seen = np.full(shape, PRIOR * used / experts)
        self._weight = [PRIOR] * len(sizes)
        self._calls = np.full(shape, experts / used)
        """In how many calls each is wanted again, on average."""
        self._far = np.full(shape, _GONE)
        """The same of those that are here and may leave."""
        self._turns = np.arange(len(sizes))[:, None] / len(sizes)

    def is_here(self, layer: int, expert: int) -> bool:
        return bool(self._here[layer, expert])

    def size(self, layer: int) -> int:
        """Bytes of an expert of that layer."""
        return self._sizes[layer]

    def most(self, layer: int) -> int:
        """Experts of that layer that there is room for at a time."""
        return self.room // self._sizes[layer]

    def want(self, layer: int, counts: Counts, rows: int) -> Change:
        """A call of `rows` rows goes through the experts of a layer, each as many times as
        `counts` says. ValueError where they have no room together.
        """
        self._learn(layer, counts, rows)
        wanted = counts > 0
        if (count := np.count_nonzero(wanted)) > self.most(layer):
            raise ValueError(f"{count} experts of a layer are wanted; {self.most(layer)} have room")
        return self._bring(layer, wanted, rows)

    def ahead(self, layer: int, rows: int) -> Change:
        """Those of a layer that a call of so many rows all but certainly goes through, as far as
        there is room beside those of the layer before it.
        """
        before = layer - 1
        kept = self._far[before].copy()
        self._far[before] = _GONE
        sure = self._again(layer, rows) <= 1 / SURE
        missing = np.flatnonzero(sure & ~self._here[layer])
        held = int(self._here[before].sum()) * self._sizes[before]
        held += int((sure & self._here[layer]).sum()) * self._sizes[layer]
        sure[missing[max(0, (self.room - held) // self._sizes[layer]) :]] = False
        change = self._bring(layer, sure, rows)
        self._far[before] = np.where(self._here[before], kept, _GONE)
        return change

    def _learn(self, layer: int, counts: Counts, rows: int) -> None:
        kept = (1 - 1 / MEMORY) ** rows
        seen = self._seen[layer]
        seen *= kept
        seen += counts
        self._weight[layer] = self._weight[layer] * kept + rows
        self._calls[layer] = self._again(layer, rows)

    def _again(self, layer: int, rows: int) -> NDArray[np.float64]:
        """After how many calls of so many rows each expert is wanted again, on average."""
        share: NDArray[np.float64] = self._seen[layer] / self._weight[layer]
        np.clip(share, _SELDOM, 1 - _SELDOM, out=share)
        return 1 / share if rows <= 1 else 1 / (1 - (1 - share) ** rows)

    def _bring(self, layer: int, wanted: NDArray[np.bool_], rows: int) -> Change:
        here, size = self._here[layer], self._sizes[layer]
        missing = np.flatnonzero(wanted & ~here).tolist()
        self._far[layer, wanted] = _GONE
        short = self.taken + size * len(missing) - self.room
        leave = self._leave(layer, short, rows) if short > 0 else []
        here[missing] = True
        self.taken += size * len(missing)
        self._far[layer] = np.where(here, self._calls[layer], _GONE)
        return Change(leave, [(layer, expert) for expert in missing])

    def _leave(self, layer: int, short: int, rows: int) -> list[tuple[int, int]]:
        """Those that are wanted last, until so many bytes are free."""
        far = self._far
        if rows > 1:  # of one row, hardly an expert is wanted so often that turns matter
            far = np.where(far > 0, far + np.roll(self._turns, layer + 1, axis=0), _GONE)
        leave = []
        while short > 0:
            place, expert = divmod(int(far.argmax()), far.shape[1])
            far[place, expert] = self._far[place, expert] = _GONE
            self._here[place, expert] = False
            self.taken -= self._sizes[place]
            short -= self._sizes[place]
            leave.append((place, expert))
        return leave
