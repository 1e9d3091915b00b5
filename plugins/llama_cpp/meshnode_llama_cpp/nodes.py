"""The nodes of llama.cpp's graph, while they are computed: their names, and the numbers in them.

llama.cpp asks of each node whether it is wanted, and tells of the wanted ones when they are
computed (`cb_eval`). It asks some 33 times for each layer, so the answer is no by the first four
characters of a name, read where they stand: all of the memory is one array of words. That takes a
third of the time of a call of ggml's function.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Container
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshnode_llama_cpp.library import open_library

WORD = 4
_ANYWHERE = 1 << 46
"""Words: as far as the addresses of a process go."""


def head(name: bytes) -> int:
    """The first word of a name, as `watcher` compares it."""
    return int.from_bytes(name[:WORD], sys.byteorder)


class _Shape(ctypes.Structure):
    """The beginning of struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
    )


class Tensors:
    """What ggml tells of its tensors, which are addresses here."""

    def __init__(self) -> None:
        base = open_library("ggml-base")
        self._name = base.ggml_get_name
        self._name.restype, self._name.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        self.size = base.ggml_nbytes
        self.size.restype, self.size.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        moved: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self.read, self.write = base.ggml_backend_tensor_get, base.ggml_backend_tensor_set
        for function in (self.read, self.write):
            function.restype, function.argtypes = None, moved

    @property
    def name_offset(self) -> int:
        """Where in a tensor its name stands. The address is not looked at."""
        return int(self._name(WORD)) - WORD

    def name(self, tensor: int) -> bytes:
        return ctypes.string_at(self._name(tensor))

    def numbers(self, tensor: int) -> NDArray[np.int32]:
        """The whole numbers of a tensor of rows, which may be a part of longer ones: those of the
        experts that each row goes through are the first of all, by their scores. ValueError for a
        tensor of another shape.
        """
        shape, size = _Shape.from_address(tensor), int(self.size(tensor))
        rows, width, apart = shape.ne[1], shape.ne[0], shape.nb[1]
        if not rows:
            return np.empty((0, width), np.int32)
        if size != (rows - 1) * apart + width * WORD:
            raise ValueError(f"{self.name(tensor)!r} has {size} bytes in {rows} rows of {width}")
        flat = np.empty(size // WORD, np.int32)
        self.read(tensor, flat.ctypes.data, 0, size)
        return np.lib.stride_tricks.as_strided(flat, (rows, width), (apart, WORD)).copy()

    def sources(self, tensor: int) -> tuple[int, ...]:
        """What a node is computed from."""
        return tuple(one for one in _Shape.from_address(tensor).src if one)

    def count(self, tensor: int) -> int:
        """Rows of a tensor of them."""
        return int(_Shape.from_address(tensor).ne[1])

    def last_rows(self, tensor: int, most: int) -> NDArray[np.float32]:
        """The last rows of a tensor of them, as they follow one another. ValueError for a tensor
        of another shape.
        """
        shape = _Shape.from_address(tensor)
        width, rows = shape.ne[0], shape.ne[1]
        count, apart = min(rows, most), width * WORD
        if shape.type or shape.nb[1] != apart or int(self.size(tensor)) != rows * apart:
            raise ValueError(f"{self.name(tensor)!r} is not of {rows} rows of {width}")
        found = np.empty((count, width), np.float32)
        if count:
            self.read(tensor, found.ctypes.data, (rows - count) * apart, found.nbytes)
        return found


class _All:
    """Holds everything."""

    def __contains__(self, _: object) -> bool:
        return True


def watcher(
    offset: int, ask: Callable[[int], bool], tell: Callable[[int], bool]
) -> tuple[Callable[[int, bool, object], bool], Callable[[Container[int]], None]]:
    """A callback, and what tells it the first words of the names that it is to ask for."""
    words = (ctypes.c_uint32 * _ANYWHERE).from_address(0)
    heads: Container[int] = _All()

    def watch(tensor: int, asks: bool, _data: object) -> bool:
        if asks:
            return words[(tensor + offset) >> 2] in heads and ask(tensor)
        return tell(tensor)

    def narrow(wanted: Container[int]) -> None:
        nonlocal heads
        heads = wanted

    return watch, narrow
