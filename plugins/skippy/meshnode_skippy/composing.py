"""Writes the GGUF of a stage from local GGUF files, as a recipe says.

Tensors are copied as bytes, in whatever type they are. Tensors that a recipe makes of zeros need
no source: they are holes in the file, of a type that is small where the shape allows it.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from p2p_mesh.core.families import Recipe, study
from p2p_mesh.core.families.family import family
from p2p_mesh.core.families.keys import keys
from p2p_mesh.core.families.recipe import VOCABULARY, Renamed
from p2p_mesh.core.families.tensors import LOOKING
from p2p_mesh.core.gguf import BLOCKS, Header, Tensor, Value, read_header
from p2p_mesh.errors import ModelError

CHUNK = 16 << 20
MAX_ZEROS = 16 << 30
"""Bytes of a tensor that has no source: keys say how large it is, and they may say anything."""
_Type = gguf.GGUFValueType
_F32, _Q4_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(.+)", re.ASCII)
_TABLES = ("token_embd.weight", "output.weight", "position_embd.weight")
"""What rows are taken of, or multiplied by: ggml does that with matrices of any type."""
_NAMES = "general.tensor_extra.name"
"""Names of tensors to which the arrays beside this one (`general.tensor_extra.*`) belong."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A GGUF file, memory-mapped."""

    data: mmap.mmap
    header: Header


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor of the target: its bytes come from `source`; None: they are zeros."""

    name: str
    shape: tuple[int, ...]
    """Innermost first."""
    type: gguf.GGMLQuantizationType
    size: int
    source: tuple[_Source, Tensor] | None = None
    factor: float = 1.0


def compose(
    recipe: Recipe,
    *,
    metadata: Path,
    sources: Sequence[Path],
    target: Path,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Writes `target`, aside and renamed when it is whole. `metadata`: a GGUF with all keys of the
    model. Raises ModelError where a tensor is missing, or a file is none; OSError of the disk; and
    what `progress` raises, which is told the share that is written, and ends it so.
    """
    with ExitStack() as held:
        opened = [held.enter_context(_opened(path)) for path in sources]
        values = _values(metadata)
        found = _catalogue(opened)
        pieces = _pieces(recipe, found, _vocabulary(recipe, values))
        kept = _keys(recipe, values, _places(pieces))
        _write(target, _architecture(values), kept, pieces, progress)


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError as error:
        raise ModelError(f"{path} is empty") from error
    with data:
        yield _Source(data, _header(path, data))


def _header(path: Path, data: mmap.mmap) -> Header:
    try:
        return read_header(data, len(data))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _catalogue(sources: Sequence[_Source]) -> Mapping[str, tuple[_Source, Tensor]]:
    return {one.name: (source, one) for source in sources for one in source.header.tensors}


# Tensors


def _pieces(
    recipe: Recipe, found: Mapping[str, tuple[_Source, Tensor]], vocabulary: int
) -> list[_Piece]:
    pieces = {name: _copied(name, *found[source]) for name, source in _taken(recipe, found)}
    for one in recipe.renamed:
        pieces[one.name] = _renamed(one, found, vocabulary)
    for name in recipe.left_out:
        pieces.pop(name, None)
    for at, block in enumerate(recipe.blocks):
        if not any(name.startswith(f"blk.{at}.") for name in pieces):
            raise ModelError(f"none of the files has the tensors of layer {block}")
    return list(pieces.values())


def _taken(
    recipe: Recipe, found: Mapping[str, tuple[_Source, Tensor]]
) -> Iterator[tuple[str, str]]:
    """Names in the target, and in the sources, of what is taken as it is."""
    places: dict[int, list[int]] = {}
    for at, block in enumerate(recipe.blocks):
        places.setdefault(block, []).append(at)
    for source in found:
        if match := _BLOCK.fullmatch(source):
            for at in places.get(int(match[1]), ()):
                yield f"blk.{at}.{match[2]}", source
        elif source in recipe.shared or "*" in recipe.shared:
            yield source, source


def _copied(name: str, source: _Source, tensor: Tensor) -> _Piece:
    try:
        kind = gguf.GGMLQuantizationType(tensor.type)
    except ValueError as error:
        what = f"the tensor {tensor.name!r} is of type {tensor.type}, which is not known"
        raise ModelError(what) from error
    if not tensor.size:
        raise ModelError(f"the tensor {tensor.name!r} is empty")
    return _Piece(name, tensor.shape, kind, tensor.size, (source, tensor))


def _renamed(one: Renamed, found: Mapping[str, tuple[_Source, Tensor]], vocabulary: int) -> _Piece:
    if one.shape:
        shape = tuple(vocabulary if n == VOCABULARY else n for n in one.shape)
        is_small = one.name in _TABLES and shape[0] % 32 == 0
        return _zeros(one.name, shape, _Q4_0 if is_small else _F32)
    source = found.get(one.source) or found.get(one.otherwise)
    if source is None:
        raise ModelError(f"none of the files has the tensor {one.source!r}")
    piece = _copied(one.name, *source)
    if one.change == "zeros":
        return replace(piece, source=None)
    if one.factor != 1.0 and piece.type is not _F32:
        raise ModelError(f"the tensor {one.source!r} would have to be scaled, and is not in F32")
    return replace(piece, factor=one.factor)


def _zeros(name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> _Piece:
    block, size = BLOCKS[kind]
    total = math.prod(shape) // block * size
    if total > MAX_ZEROS:
        raise ModelError(f"the tensor {name!r} would have {total} bytes; {MAX_ZEROS} is the limit")
    return _Piece(name, shape, kind, total)


def _places(pieces: Sequence[_Piece]) -> Mapping[str, str]:
    """Names in the target by names in the sources."""
    return {one.source[1].name: one.name for one in pieces if one.source is not None}


# Keys


@dataclass(frozen=True, slots=True)
class _Key:
    value: Any
    type: gguf.GGUFValueType
    element: gguf.GGUFValueType | None = None


def _values(path: Path) -> dict[str, _Key]:
    """All keys of a file, with their types; its header is checked before the library reads it."""
    with _opened(path):
        pass
    try:
        fields = gguf.GGUFReader(path).fields
        return {
            name: _Key(field.contents(), field.types[0], _element(field))
            for name, field in fields.items()
            if not name.startswith("GGUF.")
        }
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _element(field: gguf.ReaderField) -> gguf.GGUFValueType | None:
    return field.types[-1] if field.types[0] is _Type.ARRAY else None


def _vocabulary(recipe: Recipe, values: Mapping[str, _Key]) -> int:
    if not recipe.has_vocabulary:
        return 1
    tokens = values.get("tokenizer.ggml.tokens")
    if tokens is not None:
        return len(tokens.value)
    told = values.get(f"{_architecture(values)}.vocab_size")
    return int(told.value) if told is not None else 1


def _architecture(values: Mapping[str, _Key]) -> str:
    found = values.get("general.architecture")
    if found is None or not isinstance(found.value, str):
        raise ModelError("its keys do not name its architecture")
    return found.value


def _keys(recipe: Recipe, values: Mapping[str, _Key], places: Mapping[str, str]) -> dict[str, _Key]:
    kept = {name: key for name, key in values.items() if not _is_dropped(name, key, recipe)}
    for name, value in recipe.metadata.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = _typed(value, values.get(name))
    if not recipe.has_vocabulary:
        kept["tokenizer.ggml.model"] = _Key("none", _Type.STRING)
        kept[f"{_architecture(values)}.vocab_size"] = _Key(1, _Type.UINT32)
    return kept | _extras(values, places)


def _is_dropped(name: str, key: _Key, recipe: Recipe) -> bool:
    if name in ("general.architecture", "general.alignment"):
        return True  # the writer puts its own
    if isinstance(key.value, list) and not key.value:
        return True  # the writer refuses empty arrays, and they say nothing
    is_vocabulary = name.startswith("tokenizer.") and not recipe.has_vocabulary
    return is_vocabulary or name.startswith(("split.", "general.tensor_extra."))


def _typed(value: Value, former: _Key | None) -> _Key:
    """As the model's own key is typed, where it has the same shape."""
    if isinstance(value, tuple):
        element = former.element if former and former.element else _scalar_type(value[0])
        return _Key(list(value), _Type.ARRAY, element)
    if former is not None and former.type is not _Type.ARRAY:
        return _Key(value, former.type)
    return _Key(value, _scalar_type(value))


def _scalar_type(value: Value) -> gguf.GGUFValueType:
    if isinstance(value, bool):
        return _Type.BOOL
    return _Type.FLOAT32 if isinstance(value, float) else _Type.UINT32


def _extras(values: Mapping[str, _Key], places: Mapping[str, str]) -> dict[str, _Key]:
    """What is said of single tensors by their names, for those that the target holds."""
    if (names := values.get(_NAMES)) is None:
        return {}
    held = [at for at, name in enumerate(names.value) if name in places]
    if not held:
        return {}
    beside = {
        name: replace(key, value=[key.value[at] for at in held])
        for name, key in values.items()
        if name.startswith("general.tensor_extra.")
        and isinstance(key.value, list)
        and len(key.value) == len(names.value)
    }
    renamed = [places[names.value[at]] for at in held]
    return beside | {_NAMES: replace(names, value=renamed)}


# The file


def _write(
    target: Path,
    architecture: str,
    kept: Mapping[str, _Key],
    pieces: Sequence[_Piece],
    progress: Callable[[float], None],
) -> None:
    aside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        writer = gguf.GGUFWriter(aside, architecture)
        with closing(writer):
            for name, key in kept.items():
                writer.add_key_value(name, key.value, key.type, key.element)
            for one in pieces:
                writer.add_tensor_info(
                    one.name, one.shape[::-1], np.dtype(np.float32), one.size, raw_dtype=one.type
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            _fill(writer, pieces, progress)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _fill(
    writer: gguf.GGUFWriter, pieces: Sequence[_Piece], progress: Callable[[float], None]
) -> None:
    assert writer.fout is not None
    [file] = writer.fout
    align = writer.data_alignment
    at = -(-file.tell() // align) * align
    total, done = sum(one.size for one in pieces if one.source is not None), 0
    for one in pieces:
        if one.source is not None:
            file.seek(at)
            for chunk in _chunks(one):
                file.write(chunk)
                done += len(chunk)
                progress(done / total)
        at += -(-one.size // align) * align
    file.truncate(at)


def _chunks(piece: _Piece) -> Iterator[bytes]:
    assert piece.source is not None
    source, tensor = piece.source
    for start in range(tensor.offset, tensor.offset + tensor.size, CHUNK):
        raw = source.data[start : min(start + CHUNK, tensor.offset + tensor.size)]
        if piece.factor == 1.0:
            yield raw
        else:
            yield (np.frombuffer(raw, np.float32) * np.float32(piece.factor)).tobytes()


# Deeper fixtures


def repeat(source: Path, target: Path, times: int) -> None:
    """A model whose layers are those of `source`, again and again: a test file with as many layers
    as a real one. Layers of the dense prefix come again with the experts of the last layer.
    """
    with _opened(source) as opened:
        header = opened.header
    total = study(header).total
    blocks = tuple(range(total)) * times
    leading = header.number("leading_dense_block_count")
    found = dict(keys(header, family(header.architecture), total, blocks, 0))
    dense = [at for at, block in enumerate(blocks) if block < leading <= at]
    if leading and header.architecture != "lfm2":
        found[f"{header.architecture}.leading_dense_block_count"] = leading
    if header.number("interleave_moe_layer_step") and header.architecture == "ernie4_5-moe":
        found[f"{header.architecture}.interleave_moe_layer_step"] = 1  # as real files have it
    changes = [_with_experts(header, at, blocks[at], total - 1) for at in dense]
    recipe = Recipe(
        0,
        total,
        total,
        blocks,
        "tokens",
        metadata=found,
        shared=("*",),
        renamed=tuple(one for renamed, _ in changes for one in renamed),
        left_out=(*(one for _, left in changes for one in left), *_looking(header, blocks, total)),
    )
    compose(recipe, metadata=source, sources=[source], target=target)


def _looking(header: Header, blocks: Sequence[int], total: int) -> Iterator[str]:
    """A model has one layer that looks tokens up: the first of those that come again."""
    places = header.metadata.get(f"{header.architecture}.ple.layers")
    for at, block in enumerate(blocks):
        if at >= total and isinstance(places, tuple) and block in places:
            yield from (f"blk.{at}.{name}.weight" for name in LOOKING)


def _with_experts(
    header: Header, at: int, block: int, last: int
) -> tuple[tuple[Renamed, ...], tuple[str, ...]]:
    """What layer `at` takes of the last layer, and what it does not take of its own."""
    own = ("ffn_", "exp_probs", *(("",) if header.architecture == "minimax-m3" else ()))

    def names(of: int) -> set[str]:
        found = (_BLOCK.fullmatch(one.name) for one in header.tensors)
        return {one[2] for one in found if one and int(one[1]) == of and one[2].startswith(own)}

    taken = names(last)
    renamed = tuple(Renamed(f"blk.{at}.{name}", f"blk.{last}.{name}") for name in sorted(taken))
    return renamed, tuple(f"blk.{at}.{name}" for name in sorted(names(block) - taken))
