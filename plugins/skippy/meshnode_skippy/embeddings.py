"""Rows of a model's embedding table, as numbers: what a first stage without a vocabulary is fed.

They are read where they lie in the file, and turned into numbers by ggml's own function, so they
are to the last bit what its graph would look up.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from meshnode_llama_cpp.library import open_library
from numpy.typing import NDArray

from p2p_mesh.core.gguf import Tensor, read_header
from p2p_mesh.errors import ModelError

_F32 = 0


class _Traits(ctypes.Structure):
    """struct ggml_type_traits, as far as it is wanted."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class Embeddings:
    def __init__(self, path: str | Path, name: str = "token_embd.weight") -> None:
        """Raises ModelError where the file has no such table."""
        with Path(path).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        table = _find(data, name, Path(path).name)
        self.width, self.count = table.shape[0], table.shape[1]
        lines = np.frombuffer(data, np.uint8, table.size, table.offset)
        self._lines = lines.reshape(self.count, -1)
        self._to_float = _converter(table, name)
        self._rows = np.empty((0, self.width), np.float32)

    def rows(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """One for each token, good until the next call. IndexError for one that is not there."""
        count = len(tokens)
        if count > len(self._rows):
            self._rows = np.empty((count, self.width), np.float32)
        if count and not 0 <= tokens.min() <= tokens.max() < self.count:
            raise IndexError(f"a token is not in the table of {self.count}")
        found = self._rows[:count]
        if self._to_float is None:
            found[:] = self._lines.view(np.float32)[tokens]
            return found
        start, target = self._lines.ctypes.data, found.ctypes.data
        for place, token in enumerate(tokens.tolist()):
            line = start + token * self._lines.shape[1]
            self._to_float(line, target + place * 4 * self.width, self.width)
        return found


def _find(data: mmap.mmap, name: str, file: str) -> Tensor:
    tensors = read_header(data, len(data)).tensors
    found = next((one for one in tensors if one.name == name), None)
    if found is None or len(found.shape) != 2 or not found.size:
        raise ModelError(f"{file} has no table {name}")
    return found


def _converter(table: Tensor, name: str) -> Callable[[int, int, int], None] | None:
    """None: the numbers are there as they are."""
    if table.type == _F32:
        return None
    base: Any = open_library("ggml-base")
    base.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    traits = base.ggml_get_type_traits(table.type).contents
    if not traits.to_float:
        raise ModelError(f"{name} is of a type that has no numbers: {table.type}")
    convert: Callable[[int, int, int], None] = traits.to_float
    return convert
