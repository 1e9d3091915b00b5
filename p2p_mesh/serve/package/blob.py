"""Bytes that lie in files, or in ranges of files, and can be read by range and hashed: an artifact
of a package, of which there need be no copy.
"""

from __future__ import annotations

import hashlib
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from p2p_mesh.core.package import PIECE
from p2p_mesh.errors import ModelError, RequestError

WORKERS = 4
"""Threads that hash at a time, at most."""

REPORT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was looked at."""

    path: Path
    stamp: tuple[int, int, int, int]
    """Device, inode, size, time of the last change."""

    @property
    def size(self) -> int:
        return self.stamp[2]

    @property
    def key(self) -> str:
        """One text for one content, as far as the file system says."""
        return ":".join(map(str, self.stamp))

    def read(self, offset: int, length: int) -> bytes:
        """Raises ModelError where the file is gone, or is another by now."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._check(handle)
                return _pread(handle, offset, length)
            finally:
                os.close(handle)
        except OSError as error:
            raise ModelError(f"{self.path} cannot be read: {error.strerror}") from error

    def check(self) -> None:
        """Raises ModelError where the file is gone, or is another by now."""
        self.read(0, 0)

    def _check(self, handle: int) -> None:
        if _stamp(os.fstat(handle)) != self.stamp:
            raise ModelError(f"{self.path} was changed while it was in use: load it again")


def look_at(path: Path) -> File:
    """Raises OSError."""
    return File(path, _stamp(path.stat()))


def _stamp(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _pread(handle: int, offset: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.pread(handle, min(length, 1 << 30), offset)):
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a blob: some that are given, a range of a file, or zeros."""

    length: int
    data: bytes | None = None
    file: File | None = None
    offset: int = 0

    def read(self, start: int, length: int) -> bytes:
        if self.data is not None:
            return self.data[start : start + length]
        if self.file is not None:
            return self.file.read(self.offset + start, length)
        return bytes(length)


class Blob:
    """Segments, one behind the other. Its methods block; they may be called in several threads."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(one for one in segments if one.length)
        self._ends = tuple(accumulate(one.length for one in self.segments))
        self.size = self._ends[-1] if self._ends else 0

    @property
    def files(self) -> tuple[File, ...]:
        """The files of which it has ranges, each once."""
        return tuple(dict.fromkeys(one.file for one in self.segments if one.file is not None))

    def read(self, offset: int, length: int) -> bytes:
        """Raises RequestError for a range that it has not, ModelError where a file has changed."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise RequestError(f"there are {self.size} bytes, and not {length} from {offset}")
        parts = []
        place = bisect_right(self._ends, offset)
        while length > 0:
            segment = self.segments[place]
            start = offset - (self._ends[place] - segment.length)
            taken = min(length, segment.length - start)
            parts.append(segment.read(start, taken))
            offset, length, place = offset + taken, length - taken, place + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        for offset in range(0, self.size, PIECE):
            yield self.read(offset, min(PIECE, self.size - offset))


def whole(file: File) -> Blob:
    return Blob([Segment(file.size, file=file)])


@dataclass(frozen=True, slots=True)
class Hashed:
    """The SHA-256 of a blob, and of each of its pieces."""

    sha256: str
    pieces: tuple[str, ...]


class Stopped(Exception):
    """Whoever wanted the hashes wants them no more."""


class Job:
    """Work on many blobs, in a few threads: how far it is, and whether it is still wanted."""

    def __init__(self, progress: Callable[[float], None] = lambda _: None) -> None:
        self._progress = progress
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._done = 0

    def stop(self) -> None:
        self._stopped.set()

    def hash(
        self, blobs: Mapping[str, Blob], write: Callable[[str, bytes], object] = lambda _, __: None
    ) -> dict[str, Hashed]:
        """The hashes of all. `write` is given each piece with its blob's name, in order. The
        progress is reported in this thread. Raises Stopped, and what reading and writing raise.
        """
        total = sum(blob.size for blob in blobs.values())
        workers = max(1, min(WORKERS, os.cpu_count() or 1, len(blobs)))
        with ThreadPoolExecutor(workers) as threads:
            try:
                found = {name: threads.submit(self._one, name, blob, write)
                         for name, blob in blobs.items()}  # fmt: skip
                waiting = set(found.values())
                while waiting:
                    done, waiting = wait(waiting, REPORT_SECONDS, FIRST_COMPLETED)
                    for one in done:
                        one.result()
                    self._progress(self._done / total if total else 1.0)
            except BaseException:
                self.stop()  # the threads end at their next piece, and only then does this
                raise
        return {name: one.result() for name, one in found.items()}

    def _one(self, name: str, blob: Blob, write: Callable[[str, bytes], object]) -> Hashed:
        total = hashlib.sha256()
        pieces = []
        for piece in blob.pieces():
            if self._stopped.is_set():
                raise Stopped
            total.update(piece)
            pieces.append(hashlib.sha256(piece).hexdigest())
            write(name, piece)
            with self._lock:
                self._done += len(piece)
        return Hashed(total.hexdigest(), tuple(pieces))
