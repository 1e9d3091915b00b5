"""The experts of a model: which of them are in memory, and the rest on the disk.

Pages that an expert shares with what stands beside it stay once they were read, since the neighbour
may be wanted: only whole pages of its own come and go.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from meshnode_flash_moe.arena import PAGE, Arena, Pages, inner, outer
from meshnode_flash_moe.reader import Part, Reader
from meshnode_flash_moe.residency import Change, Residency


@dataclass(frozen=True, slots=True)
class Slices:
    """Weights of a layer: the file, where those of expert 0 begin, and bytes of one expert."""

    file: int
    offset: int
    size: int


@dataclass(slots=True)
class Spent:
    """What the disk has cost so far."""

    chosen: int = 0
    """Experts that tokens went through, each once in a call,"""
    found: int = 0
    """and those of them that were in memory."""
    bytes: int = 0
    seconds: float = 0.0
    """In which there was nothing to do but wait."""
    rows: int = 0
    all: float = 0.0
    """Seconds in which something was computed, or waited for."""
    reading: float = 0.0
    """Of them and of others, those in which the disk was read."""

    def copy(self) -> Spent:
        return replace(self)


class Experts:
    """Brings in what a call goes through, by the places of layers: 0 is the first with experts."""

    def __init__(
        self,
        layers: Sequence[Sequence[Slices]],
        arena: Arena,
        reader: Reader,
        *,
        experts: int,
        used: int,
        room: int,
    ) -> None:
        self._layers, self._arena, self._reader = layers, arena, reader
        self._stands: dict[tuple[int, int], Sequence[tuple[Pages, Part]]] = {}
        sizes = [sum(one.size for one in layer) for layer in layers]
        self.residency = Residency(sizes, experts, used, room)
        self.total = sum(sizes) * experts
        self._count = experts
        self.spent = Spent()

    @property
    def edges(self) -> int:
        """Bytes of the pages that experts share, which never leave."""
        return PAGE * sum(_splits(one) for layer in self._layers for one in layer) * self._count

    def need(self, place: int, ids: NDArray[np.int32]) -> None:
        """Returns when the experts of a layer are in memory that each row (of `ids`) goes through.
        Raises OSError, and ValueError for what has no room.
        """
        rows = len(ids)
        if not rows:
            return
        counts = np.bincount(ids.ravel(), minlength=self._count)
        change = self.residency.want(place, counts, rows)
        if change.leave:  # what was read ahead may be among it, and must not move while it comes
            self._wait()
        self._bring(change)
        chosen = int(np.count_nonzero(counts))
        self.spent.chosen += chosen
        self.spent.found += chosen - len(change.come)
        self._wait()
        if rows > 1:  # of one token, nothing says where it goes next
            self._bring(self.residency.ahead((place + 1) % len(self._layers), rows))

    def fill(self) -> Iterator[float]:
        """Brings in all, layer by layer, where there is room for all; tells the share."""
        for place in range(len(self._layers)):
            every = np.ones(self._count, np.intp)
            self._bring(self.residency.want(place, every, 0))
            self._wait()
            yield (place + 1) / len(self._layers)

    def _bring(self, change: Change) -> None:
        """Begins to read what comes: each part as soon as it has its pages."""
        self._arena.empty(own for one in change.leave for own, _ in self._stand(*one))
        for one in change.come:
            for own, part in self._stand(*one):
                self._arena.make(own)
                self._reader.post(part)
            self.spent.bytes += self.residency.size(one[0])
        self._arena.trim()

    def _wait(self) -> None:
        begun = time.perf_counter()
        self._reader.wait()
        self.spent.seconds += time.perf_counter() - begun
        self.spent.reading = self._reader.busy

    def _stand(self, place: int, expert: int) -> Sequence[tuple[Pages, Part]]:
        """Of each slice of an expert, the pages that are all its own, and what is read."""
        found = self._stands.get((place, expert))
        if found is None:
            found = self._stands[place, expert] = list(self._found(place, expert))
        return found

    def _found(self, place: int, expert: int) -> Iterator[tuple[Pages, Part]]:
        for one in self._layers[place]:
            offset = one.offset + expert * one.size
            start = self._arena.address(one.file, offset)
            pages = outer(start, start + one.size)
            part = Part(one.file, offset - (start - pages[0]), self._arena.view(pages))
            yield inner(start, start + one.size), part


def _splits(one: Slices) -> bool:
    return one.offset % PAGE != 0 or one.size % PAGE != 0
