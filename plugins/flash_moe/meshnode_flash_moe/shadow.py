"""Loads a model without its weights, and says where in memory they would stand.

llama.cpp maps a file with MAP_POPULATE, which reads all of it at once: more than the memory holds,
where a model is larger. So it is given a shadow, a file in memory that has the header and the size
of the real one, and no blocks. When llama.cpp says that it begins with the weights, the shadow
is cut off behind its header: there is nothing left to populate, and the mapping stands where it
was. What llama.cpp takes for the weights is from then on ours to fill (arena.py). Its words are not
promised: where they do not come, the model is refused, since all of it was populated with zeros.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meshnode_llama_cpp.library import L, log
from meshnode_llama_cpp.model import LOAD_MODE_MMAP

from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.errors import ModelError

_BEGINS = b"loading model tensors"


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of a file, and where llama.cpp believes they are mapped; whole pages."""

    file: int
    """Which one of the files."""
    offset: int
    size: int
    address: int


@dataclass(frozen=True, slots=True)
class Shadow:
    """What stands for a file while llama.cpp loads it."""

    name: str
    descriptor: int
    header_size: int
    inode: int


def headers(paths: Sequence[Path]) -> list[Header]:
    """Of the files of a model. Raises ModelError."""
    return [_header(path) for path in paths]


def load(
    paths: Sequence[Path], found: Sequence[Header], params: Any, open_file: Callable[[bytes], Any]
) -> tuple[Any, list[Region]]:
    """Loads a model by `open_file`, given the path of its first shadow, with nothing in it.
    `params` are llama.cpp's. Returns its handle, which is None where it refuses the file.
    """
    params.load_mode = LOAD_MODE_MMAP
    params.use_extra_bufts = False  # repacking would copy weights that are not there
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="meshnode-"))
        shadows = [_shadow(path, header, stack) for path, header in zip(paths, found, strict=True)]
        for shadow in shadows:
            Path(folder, shadow.name).symlink_to(f"/proc/self/fd/{shadow.descriptor}")
        cutter = _Cutter(shadows)
        hook = L.llama_log_callback(cutter.hear)
        L.llama_log_set(hook, None)
        try:
            handle = open_file(str(Path(folder, shadows[0].name)).encode())
        finally:
            L.llama_log_set(log, None)
        if handle and not cutter.has_cut:
            raise ModelError("this version of llama.cpp does not say when it begins with weights")
        return handle, list(_regions(shadows))


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file, _mapped(file.fileno()) as data:
            return read_header(data, len(data))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _mapped(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _shadow(path: Path, header: Header, stack: ExitStack) -> Shadow:
    start = min((one.offset for one in header.tensors), default=path.stat().st_size)
    descriptor = os.memfd_create(path.name)
    stack.callback(os.close, descriptor)
    with path.open("rb") as file:
        os.write(descriptor, file.read(start))
    os.ftruncate(descriptor, path.stat().st_size)
    return Shadow(path.name, descriptor, start, os.fstat(descriptor).st_ino)


class _Cutter:
    """Hears llama.cpp's log, and cuts the shadows off in time."""

    def __init__(self, shadows: Sequence[Shadow]) -> None:
        self._shadows = shadows
        self.has_cut = False

    def hear(self, level: int, text: bytes, data: Any) -> None:
        if _BEGINS in text:
            self.has_cut = True
            for shadow in self._shadows:
                os.ftruncate(shadow.descriptor, shadow.header_size)
        log(level, text, data)


def _regions(shadows: Sequence[Shadow]) -> Iterator[Region]:
    """Where the shadows are mapped (proc(5), maps)."""
    numbers = {shadow.inode: number for number, shadow in enumerate(shadows)}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, inode, *name = line.split(maxsplit=5)
        if int(inode) in numbers and name and name[0].startswith("/memfd:"):
            start, end = (int(one, 16) for one in span.split("-"))
            yield Region(numbers[int(inode)], int(offset, 16), end - start, start)
