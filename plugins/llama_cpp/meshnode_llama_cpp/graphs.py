"""As which graphs llama.cpp computes a call, where each sequence has a cache of its own
(llama_batch_allocr::split_equal). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Graph = tuple[tuple[int, ...], int]
"""Slots that follow one another, and how many rows of each are in it: their next ones."""


def graphs(rows: Iterable[tuple[int, int]]) -> Iterator[Graph]:
    """Those of a call, in order. `rows`: slots, rising, and how many rows each has. A graph takes
    as many of each as the one has that has fewest left.
    """
    left = list(rows)
    while left:
        run = [one for place, one in enumerate(left) if one[0] == left[0][0] + place]
        count = min(more for _, more in run)
        yield tuple(slot for slot, _ in run), count
        left = [(slot, more - count) for slot, more in run if more > count] + left[len(run) :]
