"""The GGUF files that a model is in: one, or all of a split one (`-00001-of-000NN`)."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from p2p_mesh.core.gguf import Header, Tensor, read_header
from p2p_mesh.core.package import check_ranges
from p2p_mesh.core.reference import split_name, split_names
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import File, look_at

MAX_FILES = 1024
"""That one model may be split into."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of a model's files."""

    file: File
    header: Header


@dataclass(frozen=True, slots=True)
class Source:
    """A model's files, in order; the first has its keys."""

    parts: tuple[Part, ...]

    @property
    def header(self) -> Header:
        """The keys of the first file, and the tensors of all, by their offsets in their files."""
        first = self.parts[0].header
        tensors = tuple(one for part in self.parts for one in part.header.tensors)
        return Header(first.metadata, tensors, first.entries)

    @property
    def size(self) -> int:
        return sum(part.file.size for part in self.parts)

    @property
    def tensors(self) -> tuple[tuple[File, Tensor], ...]:
        return tuple((part.file, one) for part in self.parts for one in part.header.tensors)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of the model whose first file this is. Raises ModelError, where it is another of
    them, or there are too many.
    """
    parts = split_name(path.name)
    if parts is None:
        return (path,)
    _, number, count = parts
    if not 1 <= count <= MAX_FILES:
        raise ModelError(f"its name says that it is in {count} files; {MAX_FILES} is the limit")
    names = tuple(split_names(path.name))
    if number != 1:
        raise ModelError(f"it is file {number} of a model in {count}: name the first, {names[0]}")
    return tuple(path.with_name(name) for name in names)


def read_file(path: Path) -> Part:
    """One GGUF file. Raises ModelError, OSError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Part(look_at(path), read_header(data, len(data)))


def read_source(path: Path) -> Source:
    """The model whose (first) file this is. Raises ModelError, OSError."""
    paths = files_of(path)
    parts = tuple(_part(one, number, len(paths)) for number, one in enumerate(paths))
    promised = parts[0].header.metadata.get("split.tensors.count")
    found = sum(len(part.header.tensors) for part in parts)
    if len(parts) > 1 and promised != found:
        raise ModelError(f"its files should have {promised} tensors and have {found}")
    return Source(parts)


def _part(path: Path, number: int, count: int) -> Part:
    if number == 0:
        part = read_file(path)
    else:
        try:
            part = read_file(path)
        except FileNotFoundError:
            raise ModelError(f"{path.name} is missing beside it: it is in {count} files") from None
        except ModelError as error:
            raise ModelError(f"{path.name} beside it: {error}") from error
    claimed = part.header.metadata.get("split.no", 0), part.header.metadata.get("split.count", 1)
    if claimed != (number, count):
        raise ModelError(
            f"{path.name} says in its header that it is file {claimed[0]} of {claimed[1]}, and in "
            f"its name {number} of {count} (counted from 0): do not rename such files"
        )
    return part


def check_source(source: Source) -> None:
    """Raises ModelError where the tensors do not make up one model."""
    for part in source.parts:
        check_ranges(part.header.tensors)
    names = [one.name for _, one in source.tensors]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"its tensor {twice!r} is in two of its files")
