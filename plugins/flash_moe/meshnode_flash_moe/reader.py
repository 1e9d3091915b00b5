"""Reads parts of files into memory, many at a time.

A disk gives what it can only to whoever asks for much at once, so threads wait for it, each in one
read. Reads are direct where the file system allows that: pages that the system would keep of the
file would be memory that nobody granted. Elsewhere they are dropped after each read.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode_flash_moe.arena import PAGE

PIECE = 1 << 20
"""Bytes of one read at most: larger parts are read in several at a time."""
DEPTHS = (4, 8, 16)
"""Reads at a time that `measure` tries."""
_STACK = 256 << 10
"""Of a thread, which calls nothing but read."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a file, and where they go. All is whole pages, but at the end of a file."""

    file: int
    offset: int
    target: memoryview


class Reader:
    """Owns the files and the threads."""

    def __init__(
        self, paths: Sequence[Path], *, depth: int, direct: bool = True, patience: float = 1.0
    ) -> None:
        """`patience`: seconds between two looks whether files are what they were. OSError."""
        self._paths = list(paths)
        self._files = [_open(path, direct=direct) for path in paths]
        self.depth = depth
        self._about = [_about(file) for file, _ in self._files]
        self._sizes = [os.fstat(file).st_size for file, _ in self._files]
        self._jobs: queue.SimpleQueue[Part | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._waited = 0
        self._patience, self._looked = patience, time.perf_counter()
        self.read = 0
        """Bytes that were asked for so far,"""
        self.busy = 0.0
        """and seconds in which some of them were read."""
        self._lock, self._active, self._begun = threading.Lock(), 0, 0.0
        before = threading.stack_size(_STACK)
        for _ in range(depth):
            threading.Thread(target=self._work, daemon=True).start()
        threading.stack_size(before)

    def post(self, part: Part) -> None:
        """Begins to read."""
        size = len(part.target)
        if size <= PIECE:
            self._jobs.put(part)
            self._waited += 1
        else:
            for at in range(0, size, PIECE):
                target = part.target[at : at + PIECE]
                self._jobs.put(Part(part.file, part.offset + at, target))
                self._waited += 1
        self.read += size

    def wait(self) -> None:
        """Until all of it is there. Raises OSError, also where a file is no longer what it was."""
        errors = []
        while self._waited:
            errors.append(self._done.get())
            self._waited -= 1
        for error in errors:
            if error is not None:
                raise error
        if time.perf_counter() - self._looked > self._patience:
            self._look()

    def close(self) -> None:
        """Ends the threads."""
        for _ in range(self.depth):
            self._jobs.put(None)
        self.wait()
        for file, _ in self._files:
            os.close(file)

    def _work(self) -> None:
        while (part := self._jobs.get()) is not None:
            error: Exception | None = None
            self._count(1)
            try:
                self._read(part)
            except OSError as found:
                error = OSError(f"{self._paths[part.file]} cannot be read: {found}")
            except Exception as found:  # noqa: BLE001  `wait` raises it: nobody hears a thread
                error = found
            self._count(-1)
            self._done.put(error)

    def _count(self, more: int) -> None:
        """One read more, or fewer, is under way."""
        with self._lock:
            now = time.perf_counter()
            if self._active:
                self.busy += now - self._begun
            self._begun = now
            self._active += more

    def _read(self, part: Part) -> None:
        file, is_direct = self._files[part.file]
        wanted = min(len(part.target), self._sizes[part.file] - part.offset)
        at = 0
        while at < wanted:
            count = os.preadv(file, [part.target[at:]], part.offset + at)
            if not count:
                raise OSError("it has become shorter while it was in use")
            at += count
        if not is_direct:
            os.posix_fadvise(file, part.offset, wanted, os.POSIX_FADV_DONTNEED)

    def _look(self) -> None:
        self._looked = time.perf_counter()
        for path, (file, _), about in zip(self._paths, self._files, self._about, strict=True):
            if _about(file) != about:
                raise OSError(f"{path} was changed while it was in use")


def measure(path: Path, *, size: int, seconds: float = 0.4) -> tuple[int, float]:
    """The depth that reads parts of so many bytes from random places fastest, and how many bytes a
    second it gave. Raises OSError.
    """
    share = seconds / len(DEPTHS)
    rate, depth = max((_rate(path, depth, size, share), depth) for depth in DEPTHS)
    return depth, rate


def _rate(path: Path, depth: int, size: int, seconds: float) -> float:
    """Bytes a second, of rounds of `depth` parts."""
    rng = random.Random(depth)
    reader = Reader([path], depth=depth)
    room = -(-size // PAGE) * PAGE
    memory = memoryview(mmap.mmap(-1, room * depth))  # it begins with a page
    length = path.stat().st_size
    most = max(1, (length - room) // PAGE)
    try:
        begun = time.perf_counter()
        while (took := time.perf_counter() - begun) < seconds or not reader.read:
            places = [rng.randrange(most) * PAGE for _ in range(depth)]
            for number, place in enumerate(places):
                reader.post(Part(0, place, memory[room * number : room * (number + 1)]))
            reader.wait()
        return reader.read * min(1.0, length / room) / took
    finally:
        reader.close()


def _open(path: Path, *, direct: bool) -> tuple[int, bool]:
    """A file, and whether it is read directly: not every file system can."""
    if direct:
        try:
            return os.open(path, os.O_RDONLY | os.O_DIRECT), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, os.O_RDONLY), False


def _about(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns
