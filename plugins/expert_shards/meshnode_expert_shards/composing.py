"""Writes the GGUF of an expert shard, as a recipe says, from ranges of the model's own files.

Nothing of a source is read but its keys and the ranges that the shard takes, so a source may be a
file of this machine or parts of one that were fetched. Keys are copied as they stand there, byte by
byte, and so is every weight: only the keys that the recipe sets are written anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p_mesh.core.experts.shard import Cut, ShardRecipe
from p2p_mesh.core.gguf import Header, Tensor, Value
from p2p_mesh.errors import ModelError

Read = Callable[[int, int], bytes]
"""The bytes of one file: from where, and how many."""

CHUNK = 16 << 20
SPARE = 64 << 20
"""Bytes of a disk that a shard leaves free."""

_ALIGNMENT = 32
"""Of tensors in a file that does not say."""
_MAX_ALIGNMENT = 1 << 16
_U32, _F32, _STRING, _ARRAY = 4, 6, 8, 9


@dataclass(frozen=True, slots=True)
class Source:
    """A GGUF file: its header, and what reads the rest of it."""

    header: Header
    read: Read


@dataclass(frozen=True, slots=True)
class Composed:
    """A shard that is written."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Range:
    """Bytes of a source, or (without one) zeros."""

    size: int
    source: Source | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    head: bytes
    ranges: tuple[_Range, ...]

    @property
    def size(self) -> int:
        return len(self.head) + sum(one.size for one in self.ranges)


def compose(
    recipe: ShardRecipe,
    *,
    keys: Source,
    sources: Sequence[Source],
    target: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> Composed:
    """Writes `target`, aside and renamed when it is whole. `keys`: has the keys of the model;
    `sources`: together have its tensors. Blocks. Raises ModelError where a tensor is missing, is
    another, or the disk has no room; OSError of the disk; and what `progress` raises, which is told
    the share that is written, and ends it so.
    """
    plan = _planned(recipe, keys, sources)
    _check_room(target, plan.size)
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    total, done = hashlib.sha256(), 0
    try:
        with aside.open("wb") as file:
            for chunk in _chunks(plan):
                file.write(chunk)
                total.update(chunk)
                done += len(chunk)
                progress(done / plan.size)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return Composed(target, plan.size, total.hexdigest())


def size_of(recipe: ShardRecipe, *, keys: Source, sources: Sequence[Source]) -> int:
    """The bytes of the file that `compose` would write. Raises as that does."""
    return _planned(recipe, keys, sources).size


def _planned(recipe: ShardRecipe, keys: Source, sources: Sequence[Source]) -> _Plan:
    found = {one.name: (source, one) for source in sources for one in source.header.tensors}
    alignment = _alignment(keys.header)
    ranges: list[_Range] = []
    infos, offset = [], 0
    for cut in recipe.tensors:
        infos.append(_info(cut, offset))
        ranges += _taken(cut, *_source(cut, found))
        padding = -cut.size % alignment
        ranges.append(_Range(padding))
        offset += cut.size + padding
    written = _keys(recipe, keys)
    counts = struct.pack("<4sIQQ", b"GGUF", 3, len(infos), len(written))
    head = counts + b"".join((*written, *infos))
    return _Plan(head + bytes(-len(head) % alignment), tuple(ranges))


def _check_room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if size + SPARE > free:
        raise ModelError(
            f"{target} would have {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free: "
            "free some, or write it elsewhere"
        )


# Tensors


def _source(cut: Cut, found: Mapping[str, tuple[Source, Tensor]]) -> tuple[Source, Tensor]:
    if (known := found.get(cut.name)) is None:
        raise ModelError(f"none of the files has the tensor {cut.name!r}")
    tensor = known[1]
    if not tensor.size:
        raise ModelError(f"the tensor {cut.name!r} is of type {tensor.type}, which is not known")
    last = max((start + size for start, size in cut.pieces), default=0)
    if last > tensor.size or cut.type != tensor.type:
        raise ModelError(f"the tensor {cut.name!r} is another than the model's header says")
    return known


def _taken(cut: Cut, source: Source, tensor: Tensor) -> Iterator[_Range]:
    for start, size in cut.pieces:
        yield _Range(size, source, tensor.offset + start)


def _chunks(plan: _Plan) -> Iterator[bytes]:
    yield plan.head
    for one in plan.ranges:
        for start in range(0, one.size, CHUNK):
            yield _bytes(one, start, min(CHUNK, one.size - start))


def _bytes(one: _Range, start: int, size: int) -> bytes:
    if one.source is None:
        return bytes(size)
    data = one.source.read(one.offset + start, size)
    if len(data) != size:
        raise ModelError(f"a file of the model ends at {one.offset + start + len(data)} bytes")
    return data


def _info(cut: Cut, offset: int) -> bytes:
    name, shape = cut.name.encode(), cut.shape
    form = f"<Q{len(name)}sI{len(shape)}QIQ"
    return struct.pack(form, len(name), name, len(shape), *shape, cut.type, offset)


# Keys


def _keys(recipe: ShardRecipe, keys: Source) -> list[bytes]:
    """Those of the model as they stand there, and those of the recipe behind them."""
    kept = [one for one in keys.header.entries if not _is_left_out(one, recipe)]
    found = [_entry(keys, *keys.header.entries[name]) for name in kept]
    return found + [_written(name, value) for name, value in recipe.metadata.items()]


def _is_left_out(name: str, recipe: ShardRecipe) -> bool:
    return name in recipe.metadata or name in recipe.left_out


def _entry(keys: Source, start: int, end: int) -> bytes:
    data = keys.read(start, end - start)
    if len(data) != end - start:
        raise ModelError("the file with the keys of the model ends inside them")
    return data


def _written(name: str, value: Value) -> bytes:
    """A key with its value."""
    data = name.encode()
    head = struct.pack("<Q", len(data)) + data
    match value:
        case tuple():
            form = f"<IIQ{len(value)}I"
            return head + struct.pack(form, _ARRAY, _U32, len(value), *value)
        case float():
            return head + struct.pack("<If", _F32, value)
        case int():
            return head + struct.pack("<II", _U32, value)
        case _:
            text = value.encode()
            return head + struct.pack("<IQ", _STRING, len(text)) + text


def _alignment(header: Header) -> int:
    found = header.metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(found, int) or found % 8 or not 8 <= found <= _MAX_ALIGNMENT:
        raise ModelError(f"its header claims an alignment of {found}")
    return found
