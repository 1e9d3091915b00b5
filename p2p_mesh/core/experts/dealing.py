"""On which parts each expert is at home, and which a part of a given size has beside those.

Experts are dealt out from the most used to the least, each to the parts that have fewest so far,
and among these to those whose experts are used least. With groups this is done for each by itself:
a part has as many experts of one as of any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice

Shares = Sequence[float]
"""Of the experts of a layer, how much each is used."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """One group of experts of one layer."""

    order: tuple[int, ...]
    """From the most used to the least; those used alike, rising."""
    homes: tuple[frozenset[int], ...]
    """By part: the experts that are at home on it."""

    def chosen(self, part: int, keep: int) -> list[int]:
        """Those at home, and then the most used. With a larger `keep`, the same ones and more."""
        home = self.homes[part]
        rest = (one for one in self.order if one not in home)
        return [*home, *islice(rest, keep - len(home))]


@dataclass(frozen=True, slots=True)
class Hand:
    """All experts of a model, dealt out to parts."""

    layers: tuple[tuple[Dealt, ...], ...]
    """Of each layer of the ranking, its groups."""

    @property
    def least(self) -> int:
        """How many experts a part must have of each layer, so that each has its home."""
        groups = self.layers[0]
        return len(groups) * max(len(home) for home in groups[0].homes)

    def part(self, number: int, keep: int) -> tuple[tuple[int, ...], ...]:
        """The experts of each layer that a part of so many has, rising."""
        return tuple(
            tuple(sorted(one for group in layer
                         for one in group.chosen(number, keep // len(layer))))
            for layer in self.layers
        )  # fmt: skip


def deal(shares_by_layer: Sequence[Shares], parts: int, *, groups: int, overlap: int) -> Hand:
    """With each expert at home on `overlap` parts."""
    loads = [0.0] * parts
    layers = []
    for shares in shares_by_layer:
        width = len(shares) // groups
        starts = range(0, len(shares), width)
        layers.append(tuple(_group(shares, range(start, start + width), loads, overlap)
                            for start in starts))  # fmt: skip
    return Hand(tuple(layers))


def _group(shares: Shares, among: range, loads: list[float], overlap: int) -> Dealt:
    """`loads`: how much the experts are used that each part has of all layers so far."""
    order = tuple(sorted(among, key=lambda one: (-shares[one], one)))
    homes: list[set[int]] = [set() for _ in loads]
    queue = [(0, load, part) for part, load in enumerate(loads)]
    heapify(queue)
    for expert in order:
        for _, _, part in [heappop(queue) for _ in range(overlap)]:
            homes[part].add(expert)
            loads[part] += shares[expert]
            heappush(queue, (len(homes[part]), loads[part], part))
    return Dealt(order, tuple(map(frozenset, homes)))
