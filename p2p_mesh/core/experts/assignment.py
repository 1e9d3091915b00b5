"""Which experts each of several nodes has, when none can hold them all.

Each part has equally many experts of every layer, for a file has one number of them. Every expert
is at home on at least one part (on two, with three parts and more), dealt out by how much it is
used, so that no part gets the worst of all; what a part has room for beyond that are the most used
of the rest. So the parts have a core of most used experts in common, and one with room for more
has all that it had before: its routing mass never falls. From the same ranking every node comes to
the same parts, and part i is that of the i-th of the nodes, sorted.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from p2p_mesh.core.experts.dealing import deal
from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking, check_ranking, kept_of
from p2p_mesh.core.sites import gigabytes

MIN_MASS = 0.98
"""Routing mass below which no part is made, unless told otherwise: from it on, a small model that
was trained for it read text at most 5 % worse (`scripts/bench experts`).
"""
OVERLAP_MASS = 0.85
"""Routing mass that each of three parts or more must keep for every expert to be on two of them.
All nodes go by the same (specs/shards/README.md).
"""
MAX_PARTS = 1024

_LANES = 16
"""Numbers that the widest processors add at once. A router's softmax is summed in groups of so
many: with a multiple of it, the sum comes out to the last bit as that of the whole model with the
absent experts masked.
"""
_LEAST_OF_GROUP = 2
"""llama.cpp judges a group of experts by its best two."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one node has."""

    experts: tuple[tuple[int, ...], ...]
    """Of each layer of the ranking, rising."""
    masses: tuple[float, ...]
    """The routing mass that they have of each layer,"""
    mass: float
    """and of the model (`Ranking.mean`)."""

    @property
    def least(self) -> float:
        """Of the layer that keeps least."""
        return min(self.masses)


@dataclass(frozen=True, slots=True)
class Assignment:
    keep: int
    """Experts of each layer, on every part."""
    overlap: int
    """Parts on which an expert is at least."""
    parts: tuple[Part, ...]

    @property
    def mass(self) -> float:
        """Of the part that keeps least."""
        return min(part.mass for part in self.parts)

    @property
    def core(self) -> int:
        """Experts that all parts have, of the layer that has fewest such."""
        shared = (
            frozenset[int].intersection(*map(frozenset, layer))
            for layer in zip(*(part.experts for part in self.parts), strict=True)
        )
        return min(map(len, shared))


@dataclass(frozen=True, slots=True)
class Impossible:
    """Why there is no assignment, and what to do about it."""

    why: str
    mass: float = 0.0
    """What the part that keeps least would have kept; 0: not every expert would be on a part."""
    keep: int = 0
    """With so many experts of each layer."""


def steps(of: Layout) -> tuple[int, ...]:
    """How many experts of each layer a part may have, rising; the last are all."""
    step = math.lcm(_LANES if of.experts > _LANES else 1, of.groups)
    least = fewest(of)
    return (*(one for one in range(step, of.experts, step) if one >= least), of.experts)


def fewest(of: Layout) -> int:
    """Experts of each layer without which a token would not find as many as it uses."""
    if of.groups == 1:
        return max(of.used, 2)
    return of.groups * max(_LEAST_OF_GROUP, -(-of.used // of.groups_used))


def assign(
    ranking: Ranking,
    parts: int,
    *,
    layout: Layout,
    keep: int | None = None,
    room: Sequence[int] | None = None,
    min_mass: float = MIN_MASS,
    overlap: int | None = None,
) -> Assignment | Impossible:
    """The parts of so many nodes. With `keep`, of so many experts of each layer; with `room`, what
    each node has for experts in bytes, as many as fit the smallest; else the fewest with which each
    part keeps `min_mass`. `overlap`: parts on which an expert is at least; None: 2 of three or
    more, if each then keeps OVERLAP_MASS, else 1. (Not the floor that a node was told: nodes with
    other floors must come to the same parts.)

    Raises ModelError for a ranking of another model.
    """
    check_ranking(ranking, layout)
    if not 1 <= parts <= MAX_PARTS:
        return Impossible(f"{parts} nodes cannot share experts; 1 to {MAX_PARTS} can")
    if overlap is None and parts > 2:
        plan = _Plan(ranking, layout, parts, overlap=2, floor=min_mass)
        found = plan.found(keep, room)
        if isinstance(found, Assignment) and found.mass >= OVERLAP_MASS:
            return plan.checked(found)
    plan = _Plan(ranking, layout, parts, overlap=max(1, min(overlap or 1, parts)), floor=min_mass)
    found = plan.found(keep, room)
    return plan.checked(found) if isinstance(found, Assignment) else found


class _Plan:
    """The assignments that there may be: one for each number of experts that a part may have."""

    def __init__(
        self, ranking: Ranking, layout: Layout, parts: int, *, overlap: int, floor: float
    ) -> None:
        self._ranking = ranking
        self._layout = layout
        self._parts = parts
        self._overlap = overlap
        self._floor = floor
        self._shares = tuple(layer.shares for layer in ranking.layers)
        self._hand = deal(self._shares, parts, groups=layout.groups, overlap=overlap)
        self._steps = tuple(one for one in steps(layout) if one >= self._hand.least)
        self._known: dict[int, Assignment] = {}

    def found(self, keep: int | None, room: Sequence[int] | None) -> Assignment | Impossible:
        if keep is not None:
            return self._of(keep)
        return self._made(self._enough) if room is None else self._within(min(room))

    def checked(self, found: Assignment) -> Assignment | Impossible:
        return found if found.mass >= self._floor else self._below(found)

    def _of(self, keep: int) -> Assignment | Impossible:
        """With so many experts of each layer."""
        if keep not in steps(self._layout):
            return _no_step(keep, self._layout)
        if keep < self._hand.least:
            return self._uncovered(f"with {keep} of {self._layout.experts} experts on each")
        return self._made(keep)

    def _within(self, room: int) -> Assignment | Impossible:
        """With as many as fit."""
        each = self._layout.bytes_per_expert
        fitting = [one for one in self._steps if one * each <= room]
        if not fitting:
            return self._uncovered(f"with {gigabytes(room)} GB for experts on one of them")
        return self._made(fitting[-1])

    @property
    def _enough(self) -> int:
        """The fewest experts with which each part keeps enough. All of them always do."""
        least = bisect_left(
            self._steps[:-1], True, key=lambda one: self._made(one).mass >= self._floor
        )
        return self._steps[least]

    def _made(self, keep: int) -> Assignment:
        if keep not in self._known:
            parts = tuple(self._part(number, keep) for number in range(self._parts))
            self._known[keep] = Assignment(keep, self._overlap, parts)
        return self._known[keep]

    def _part(self, number: int, keep: int) -> Part:
        experts = self._hand.part(number, keep)
        kept = tuple(map(kept_of, self._shares, experts))
        return Part(experts, kept, self._ranking.mean(kept))

    def _uncovered(self, how: str) -> Impossible:
        copies = _nodes(self._overlap)
        return Impossible(
            f"{_nodes(self._parts)} cannot have every expert on {copies} {how}: each must have "
            f"{self._amount(self._steps[0])}; take more nodes, or give them more memory"
        )

    def _below(self, found: Assignment) -> Impossible:
        enough = self._enough
        return Impossible(
            f"at {_nodes(self._parts)} each would keep {_floored(found.mass)} of the routing with "
            f"{found.keep} of {self._layout.experts} experts, less than {self._floor:.2f}: give "
            f"each memory for {self._amount(enough)} beside all else, with which it would keep "
            f"{_floored(self._made(enough).mass)}, or accept worse answers (--min-mass)",
            mass=found.mass,
            keep=found.keep,
        )

    def _amount(self, keep: int) -> str:
        size = gigabytes(keep * self._layout.bytes_per_expert)
        return f"{keep} of {self._layout.experts} experts, {size} GB"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _floored(mass: float) -> str:
    """Never shown as more than it is: 0.849 is less than 0.85."""
    return f"{math.floor(mass * 100 + 1e-6) / 100:.2f}"


def _no_step(keep: int, layout: Layout) -> Impossible:
    allowed = ", ".join(map(str, steps(layout)))
    return Impossible(
        f"a part cannot have {keep} of {layout.experts} experts, of which a token uses "
        f"{layout.used}: it may have {allowed}"
    )
