"""Asks the system to read experts as soon as a router has chosen them, where a model is larger than
memory: mapped pages that are touched one by one would each be waited for.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from p2p_mesh.core.experts.layout import Layer, layout
from p2p_mesh.core.gguf import Header, Tensor, read_header
from p2p_mesh.core.reference import split_names


class Ahead:
    """The experts of the model whose (first) file this is. The files stay open: their process ends
    with the work.
    """

    def __init__(self, path: Path) -> None:
        """Raises ModelError, OSError."""
        self._files: dict[str, int] = {}
        """By the names of tensors."""
        tensors: list[Tensor] = []
        first: Header | None = None
        for name in split_names(path.name):
            file = os.open(path.with_name(name), os.O_RDONLY | os.O_CLOEXEC)
            header = _header(file)
            first = first or header
            tensors += header.tensors
            self._files |= dict.fromkeys((one.name for one in header.tensors), file)
        assert first is not None
        found = layout(Header(first.metadata, tuple(tensors)))
        self._layers: dict[int, Layer] = {one.number: one for one in found.layers} if found else {}

    def read(self, layer: int, experts: Sequence[int]) -> None:
        """Begins to read experts of a layer. Returns at once."""
        for file, offset, size in self.ranges(layer, experts):
            os.posix_fadvise(file, offset, size, os.POSIX_FADV_WILLNEED)

    def ranges(self, layer: int, experts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
        """Where they are: open files, offsets and sizes."""
        known = self._layers.get(layer)
        for one in known.weights if known is not None else ():
            for expert in experts:
                yield self._files[one.name], *one.of(expert)


def _header(file: int) -> Header:
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        return read_header(data, len(data))
