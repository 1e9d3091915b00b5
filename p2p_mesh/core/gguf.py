"""The header of a GGUF file, from its bytes (github.com/ggml-org/ggml, docs/gguf.md).

The bytes may come from a stranger: every count and length is checked before it is believed,
and against the size of the file, so that a truncated file is found before anything loads it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from p2p_mesh.errors import ModelError

Buffer = bytes | mmap
Value = int | float | bool | str | tuple[Any, ...]

MAX_KEYS = 65_536
MAX_TENSORS = 65_536
MAX_NAME = 65_535
MAX_ARRAY = 16_777_216
MAX_DIMENSIONS = 4
KEPT_ARRAY = 4_096
"""Longer arrays, and arrays of text, are stepped over: vocabularies, not parameters."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f",
            7: "<?", 10: "<Q", 11: "<q", 12: "<d"}  # fmt: skip

# Tensor type: elements in a block, bytes of a block (gguf.GGML_QUANT_SIZES, which a test compares).
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 40), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes; 0 for a type that this table does not know."""


@dataclass(frozen=True, slots=True)
class Header:
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    entries: Mapping[str, tuple[int, int]] = field(default_factory=dict, compare=False)
    """Where each key stands in the file, with its value, from and to."""

    @property
    def architecture(self) -> str:
        found = self.metadata.get("general.architecture")
        return found if isinstance(found, str) else ""

    def number(self, key: str, default: int = 0) -> int:
        """A whole number of the architecture's own, `<architecture>.<key>`."""
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        return found if isinstance(found, int) else default

    def numbers(self, key: str, count: int, default: int = 0) -> tuple[int, ...]:
        """The same where it may differ by layer: `count` of them."""
        found = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(found, tuple) and len(found) == count:
            return tuple(one if isinstance(one, int) else default for one in found)
        return (found if isinstance(found, int) else default,) * count


class _Reader:
    """Reads little-endian values in order; never past the end."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._end = len(data)
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > self._end - self.at:
            raise ModelError("the file is truncated: it ends inside its header")
        self.at += size
        return self._data[self.at - size : self.at]

    def skip(self, size: int) -> None:
        if size > self._end - self.at:
            raise ModelError("the file is truncated: it ends inside its header")
        self.at += size

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, most: int, what: str) -> int:
        found: int = self.number("<Q")
        if found > most:
            raise ModelError(f"its header claims {found} {what}; {most} is the limit")
        return found

    def text(self, most: int) -> str:
        return self.take(self.count(most, "bytes of text")).decode("utf-8", "replace")


def read_header(data: Buffer, file_size: int) -> Header:
    """The header of a file of `file_size` bytes, of which `data` is the beginning or all.

    Raises ModelError: no GGUF, a version or a count that cannot be, or a truncated file.
    """
    reader = _Reader(data)
    if reader.take(min(4, len(data))) != b"GGUF":
        raise ModelError("it is no GGUF file")
    version = reader.number("<I")
    if version not in (2, 3):
        raise ModelError(f"it is GGUF version {version}; 2 and 3 can be read")
    tensor_count = reader.count(MAX_TENSORS, "tensors")
    key_count = reader.count(MAX_KEYS, "keys")
    metadata: dict[str, Value] = {}
    entries: dict[str, tuple[int, int]] = {}
    for _ in range(key_count):
        start = reader.at
        key, value = _entry(reader, file_size)
        metadata[key], entries[key] = value, (start, reader.at)
    tensors = [_tensor(reader) for _ in range(tensor_count)]
    return Header(metadata, _place(tensors, metadata, reader.at, file_size), entries)


def _entry(reader: _Reader, file_size: int) -> tuple[str, Value]:
    key = reader.text(MAX_NAME)
    return key, _value(reader, reader.number("<I"), file_size)


def _value(reader: _Reader, kind: int, file_size: int) -> Value:
    if kind in _SCALARS:
        value: Value = reader.number(_SCALARS[kind])
        return value
    if kind == _STRING:
        return reader.text(file_size)
    if kind == _ARRAY:
        return _array(reader, file_size)
    raise ModelError(f"its header has a value of unknown type {kind}")


def _array(reader: _Reader, file_size: int) -> tuple[Any, ...]:
    kind: int = reader.number("<I")
    count = reader.count(MAX_ARRAY, "elements of an array")
    if kind == _STRING:
        for _ in range(count):
            reader.skip(reader.count(file_size, "bytes of text"))
        return ()
    if kind not in _SCALARS:  # arrays of arrays exist in the format, and in no model
        raise ModelError(f"its header has an array of type {kind}")
    form = _SCALARS[kind]
    if count > KEPT_ARRAY:
        reader.skip(count * struct.calcsize(form))
        return ()
    raw = reader.take(count * struct.calcsize(form))
    return tuple(one for (one,) in struct.iter_unpack(form, raw))


def _tensor(reader: _Reader) -> Tensor:
    name = reader.text(MAX_NAME)
    dimensions = reader.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise ModelError(f"its tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))
    kind: int = reader.number("<I")
    block, size = BLOCKS.get(kind, (1, 0))
    return Tensor(name, shape, kind, reader.number("<Q"), math.prod(shape) // block * size)


def _place(
    tensors: list[Tensor], metadata: Mapping[str, Value], end: int, file_size: int
) -> tuple[Tensor, ...]:
    """The tensors with offsets from the start of the file, each checked to lie inside it."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise ModelError(f"its header claims an alignment of {alignment}")
    start = -(-end // alignment) * alignment
    placed = tuple(
        Tensor(one.name, one.shape, one.type, start + one.offset, one.size) for one in tensors
    )
    last = max((one.offset + one.size for one in placed), default=0)
    if last > file_size:
        raise ModelError(
            f"the file is truncated: it should have at least {last} bytes and has {file_size}"
        )
    return placed
