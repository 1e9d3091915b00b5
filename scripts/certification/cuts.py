"""Where a model of so many layers is cut: at every boundary in two, and at some in three."""

from __future__ import annotations

from itertools import pairwise
from typing import Protocol

Cut = tuple[int, ...]
"""The layers before which a new stage begins."""


class Cutting(Protocol):
    total: int

    def obstacle(self, start: int, end: int) -> str: ...


def cuts(total: int) -> list[Cut]:
    """In three: as even as can be, with one layer in the middle, and with one at either end."""
    two: list[Cut] = [(at,) for at in range(1, total)]
    three = {
        (total // 3, total - total // 3),
        (total // 2, total // 2 + 1),
        (1, total - 1),
        (total // 2 - 1, total // 2),
    }
    return two + sorted(cut for cut in three if 0 < cut[0] < cut[1] < total)


def ranges(cut: Cut, total: int) -> list[tuple[int, int]]:
    return list(pairwise((0, *cut, total)))


def obstacle(cutting: Cutting, cut: Cut) -> str:
    """The first one; empty where the model can be cut so."""
    found = (cutting.obstacle(*one) for one in ranges(cut, cutting.total))
    return next((why for why in found if why), "")
