"""The memory in which a model's weights stand: as large as the file, and filled only where they
were read.

Each byte of the file has its place, so llama.cpp finds the weights where it maps them, and direct
I/O, whose offsets and addresses must be alike, can read into them. What is not filled takes no
memory. When experts leave, their pages move to those that come, which is cheaper than to give them
back and have others zeroed: measured 1.4 GB/s for reads into moved pages and 0.8 into new ones.
Linux alone (mremap(2), MREMAP_DONTUNMAP).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from meshnode_flash_moe.shadow import Region

PAGE = mmap.PAGESIZE

_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FIXED, _NO_RESERVE = 0x10, 0x4000  # MAP_*
_MAY_MOVE, _FIXED_TARGET, _KEEP_SOURCE = 1, 2, 4  # MREMAP_*
_DONT_NEED = 4  # MADV_DONTNEED

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p,
]  # fmt: skip
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_MAPPINGS = Path("/proc/self/maps")
_LOOK_AGAIN = 4096
"""Moves that are left out where there are too many mappings."""

Pages = tuple[int, int]
"""Addresses, from and to, of whole pages."""


def inner(start: int, end: int) -> Pages:
    """The pages that are wholly within; an empty range where there are none."""
    first, last = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    return first, max(first, last)


def outer(start: int, end: int) -> Pages:
    """The pages that have some of it."""
    return start // PAGE * PAGE, -(-end // PAGE) * PAGE


class Arena:
    """Memory in the place of mappings."""

    def __init__(self, regions: Sequence[Region]) -> None:
        """Raises OSError."""
        self._regions = list(regions)
        self._spare: deque[Pages] = deque()
        """Pages that hold nothing any more, to be moved."""
        self._moves = 0
        """Before the mappings are counted again; below zero: pages are given back until then."""
        for one in regions:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED | _NO_RESERVE
            _check(_libc.mmap(one.address, one.size, _READ_WRITE, flags, -1, 0), one.address)
        self._views = [memoryview((ctypes.c_char * one.size).from_address(one.address)).cast("B")
                       for one in regions]  # fmt: skip

    @property
    def size(self) -> int:
        """Bytes of addresses."""
        return sum(one.size for one in self._regions)

    def address(self, file: int, offset: int) -> int:
        """Where a byte of a file stands. LookupError where llama.cpp maps nothing."""
        for one in self._regions:
            if one.file == file and one.offset <= offset < one.offset + one.size:
                return one.address + offset - one.offset
        raise LookupError(f"byte {offset} of file {file} is not mapped")

    def view(self, pages: Pages) -> memoryview:
        """The bytes that stand there, to be read or filled."""
        for one, view in zip(self._regions, self._views, strict=True):
            if one.address <= pages[0] < one.address + one.size:
                return view[pages[0] - one.address : pages[1] - one.address]
        raise LookupError(f"nothing of a file stands at {pages[0]:x}")

    def empty(self, pages: Iterable[Pages]) -> None:
        """What stands there is not wanted any more."""
        self._spare.extend(one for one in pages if one[0] < one[1])

    def make(self, pages: Pages) -> None:
        """Brings spare pages there, as far as there are some; what is beyond them takes new ones
        when it is written. Nothing may stand there yet.
        """
        start, end = pages
        while start < end and self._spare:
            start = self._move(self._spare.popleft(), start, end)

    def trim(self) -> None:
        """Gives back the spare pages that nothing took."""
        while self._spare:
            start, end = self._spare.popleft()
            _drop(start, end)

    def _move(self, spare: Pages, start: int, end: int) -> int:
        """Moves spare pages, returns where the next ones go. They are given back where the system
        refuses, or where so many pieces were made that there would be none left for other memory.
        """
        size = min(spare[1] - spare[0], end - start)
        flags = _MAY_MOVE | _FIXED_TARGET | _KEEP_SOURCE
        if not self._may_move() or _libc.mremap(spare[0], size, size, flags, start) != start:
            _drop(*spare)
        elif spare[0] + size < spare[1]:
            self._spare.appendleft((spare[0] + size, spare[1]))
        return start + size

    def _may_move(self) -> bool:
        """A move makes two mappings more, at most; how many there are is looked up seldom."""
        if self._moves == 0:
            left = _most_mappings() // 2 - len(_MAPPINGS.read_bytes().splitlines())
            self._moves = left // 2 if left > 1 else -_LOOK_AGAIN
        self._moves += 1 if self._moves < 0 else -1
        return self._moves >= 0


def _most_mappings() -> int:
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 65_530  # Linux's own default


def _drop(start: int, end: int) -> None:
    _libc.madvise(start, end - start, _DONT_NEED)


def _check(found: int | None, wanted: int) -> None:
    if found != wanted:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
