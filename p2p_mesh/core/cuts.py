"""Between which layers a model is cut, once it is known which nodes hold its stages in which order.

The cut is the one of least cost: what a token takes alone, and the longest stage, which is what a
token takes when many are under way. Between nodes that are about alike it balances; one that is
more than twice as fast gets what it can hold.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from p2p_mesh.core.costs import StageModel
from p2p_mesh.core.sites import Site

KEPT = 16
"""Ways to cut the layers before a boundary that are carried on, of those that none beats."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The ends of the stages, and the seconds that they compute for one token."""

    ends: tuple[int, ...]
    total: float
    longest: float

    @property
    def cost(self) -> float:
        return self.total + self.longest


class Cuts:
    """Where one model may be cut, and what each stage of it would take; looked up once."""

    def __init__(self, model: StageModel) -> None:
        self._model = model
        self._needs: dict[tuple[int, int], int | None] = {}
        self._ends: dict[tuple[int, int], tuple[int, ...]] = {}
        self._possible: dict[tuple[int, ...], bool] = {}
        self._sizes = [0, *accumulate(one.size for one in model.layers)]
        """Bytes of the weights of all layers before each."""
        self._reads = [model.read(0, end) for end in range(model.total + 1)]

    def need(self, start: int, end: int) -> int | None:
        """Bytes that a stage takes; None: there can be no such stage."""
        key = start, end
        if key not in self._needs:
            is_barred = bool(self._model.obstacle(start, end))
            self._needs[key] = None if is_barred else self._model.need(start, end)
        return self._needs[key]

    def fits(self, start: int, end: int, free: int) -> bool:
        need = self.need(start, end)
        return need is not None and need <= free

    def least(self) -> int | None:
        """What the smallest stage takes that is a part of the model; None: it cannot be cut."""
        shortest = (self._shortest(start) for start in range(self._model.total))
        return min((one for one in shortest if one is not None), default=None)

    def _shortest(self, start: int) -> int | None:
        """What the shortest stage takes that begins there, and is not the whole model."""
        total = self._model.total
        needs = (self.need(start, end) for end in range(start + 1, total + bool(start)))
        return next((one for one in needs if one is not None), None)

    def is_possible(self, sites: Sequence[Site]) -> bool:
        """Whether the nodes, in this order, can hold a stage each."""
        key = tuple(one.free for one in sites)
        if key not in self._possible:
            self._possible[key] = sum(key) >= self._sizes[-1] and self._reaches(sites)
        return self._possible[key]

    def _reaches(self, sites: Sequence[Site]) -> bool:
        reached = {0}
        for place, one in enumerate(sites):
            is_last = place == len(sites) - 1
            reached = {end for start in reached for end in self._after(start, one, is_last)}
        return bool(reached)

    def best(self, sites: Sequence[Site]) -> Cut | None:
        """The cut of least cost; None where these nodes in this order cannot hold the model."""
        fronts: dict[int, list[Cut]] = {0: [Cut((), 0.0, 0.0)]}
        for place, one in enumerate(sites):
            fronts = self._extended(fronts, one, is_last=place == len(sites) - 1)
        return min(fronts.get(self._model.total, ()), key=lambda cut: cut.cost, default=None)

    def _extended(
        self, fronts: dict[int, list[Cut]], site: Site, *, is_last: bool
    ) -> dict[int, list[Cut]]:
        found: dict[int, list[Cut]] = {}
        for start, front in fronts.items():
            for end in self._after(start, site, is_last):
                seconds = self.seconds(start, end, site)
                found.setdefault(end, []).extend(
                    Cut((*cut.ends, end), cut.total + seconds, max(cut.longest, seconds))
                    for cut in front
                )
        return {end: _unbeaten(cuts) for end, cuts in found.items()}

    def seconds(self, start: int, end: int, site: Site) -> float:
        """What a stage computes for one token."""
        total = self._model.total
        if end < total:
            return (self._reads[end] - self._reads[start]) / site.speed
        return self._model.read(start, end) / site.speed

    def _after(self, start: int, site: Site, is_last: bool) -> Iterator[int]:
        """Where a stage of that node may end, which begins there."""
        total = self._model.total
        if is_last:
            return iter((total,) if start < total and self.fits(start, total, site.free) else ())
        key = start, site.free
        if key not in self._ends:
            # What weighs too much by itself is not looked at: rules of families take their time.
            most = bisect_right(self._sizes, self._sizes[start] + site.free)
            self._ends[key] = tuple(
                end
                for end in range(start + 1, min(most, total))
                if self.fits(start, end, site.free)
            )
        return iter(self._ends[key])


def _unbeaten(cuts: list[Cut]) -> list[Cut]:
    """Those than which none is better in both, the KEPT best of them."""
    found: list[Cut] = []
    for cut in sorted(cuts, key=lambda one: (one.total, one.longest)):
        if not found or cut.longest < found[-1].longest:
            found.append(cut)
    return sorted(found, key=lambda one: one.cost)[:KEPT]
