"""What this machine has to run models with."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import psutil

from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.core.reference import split_names

SAMPLE = 32 << 20
"""Bytes that are read to measure how fast memory is: more than one core's caches hold."""
MEASURING = 0.02
"""Seconds for that; the sample takes as long again to be made."""
MOST_READERS = 4
"""More threads read hardly faster from the memory of most machines."""
BLOCK = 1 << 20
"""Bytes of one read that measures the disk: about what an expert's weights in one tensor have."""
DEPTH = 8
"""Reads at a time."""
DISK_MEASURING = 0.25
MOST_FILES = 4096
"""Files of a package, or of a split model, that are looked through for the largest."""
_SHORTEST = 1e-5
"""Seconds that a reader takes at least: some clocks are coarse."""

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)


def measure(limit: int | None = None) -> Resources:
    """The machine's resources now; memory in bytes, `limit` being the user's own cap."""
    memory = psutil.virtual_memory()
    caps = [memory.total, *_container_limits(), *([limit] if limit is not None else [])]
    total = min(caps)
    return Resources(
        memory_total=total, memory_free=min(memory.available, total), threads=threads()
    )


def bandwidth(readers: int | None = None) -> float:
    """Bytes of weights that an engine of so many threads reads from memory in a second, about:
    one token takes its weights over that. Blocks for some 50 ms, and holds no lock meanwhile.

    Each reader counts the time that it had a core: what else runs at the moment will not for ever.
    """
    readers = min(readers or _engine_threads(), threads(), MOST_READERS)
    sample = bytearray(b"\1") * SAMPLE  # pages of zeros would all be the same page
    start, part = ctypes.addressof(ctypes.c_char.from_buffer(sample)), SAMPLE // readers
    search = ctypes.CDLL(None).memchr
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    search.restype = ctypes.c_void_p

    def read(number: int) -> float:
        began = time.thread_time()
        search(start + number * part, 0, part)
        return part / max(time.thread_time() - began, _SHORTEST)

    best, until = 0.0, time.perf_counter() + MEASURING
    with ThreadPoolExecutor(readers) as pool:
        while not best or time.perf_counter() < until:
            best = max(best, sum(pool.map(read, range(readers))))
    return best


def disk(models: Iterable[ModelFile]) -> float:
    """Bytes that come from the disk in a second, DEPTH reads of a BLOCK at a time, anywhere in the
    largest mixture of experts among these models: its experts may have to be read from there. 0
    where there is none, or where the file cannot be read past the memory of the system. Blocks for
    DISK_MEASURING seconds, and as long as one read takes.
    """
    mixtures = [one for one in models if one.experts]
    if not mixtures or not hasattr(os, "O_DIRECT"):
        return 0.0
    try:
        path = _largest(Path(max(mixtures, key=lambda one: one.size_bytes).path))
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            return _read_rate(descriptor)
        finally:
            os.close(descriptor)
    except OSError:  # a file system that has no direct reads, or one that is in memory
        return 0.0


def _largest(path: Path) -> Path:
    """The file, or the largest of a package or a split model: its first may have no weights."""
    is_package = path.is_dir()
    files = path.rglob("*.gguf") if is_package else map(path.with_name, split_names(path.name))
    some = itertools.islice(files, MOST_FILES)
    return max(some, key=lambda one: one.stat().st_size, default=path)


def _read_rate(descriptor: int) -> float:
    """Bytes a second of direct reads from a file; 0 where it is smaller than one."""
    blocks = os.fstat(descriptor).st_size // BLOCK
    if not blocks:
        return 0.0
    places = Random(blocks)
    began = time.perf_counter()
    until = began + DISK_MEASURING

    def read(number: int) -> int:
        count = 0
        with mmap.mmap(-1, BLOCK) as buffer:  # direct reads want an address at a page's beginning
            while time.perf_counter() < until:
                place = BLOCK * places.randrange(blocks)
                count += os.preadv(descriptor, [buffer], place)
        return count

    with ThreadPoolExecutor(DEPTH) as pool:
        count = sum(pool.map(read, range(DEPTH)))
    return count / (time.perf_counter() - began)


def _engine_threads() -> int:
    """Those of an engine to which nobody said a number."""
    usable = threads()
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable - 1))


def threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _container_limits() -> list[int]:
    """A container sees the whole machine's memory and may use less of it."""
    found = []
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # else "max"
            found.append(int(text))
    return found
