"""What processes take of the memory, and what the system keeps of files. Linux."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

_TAKEN = ("RssAnon:", "RssShmem:")


def anonymous(pid: int) -> int:
    """Bytes that belong to a process and to no file, locked or not; 0 where it has ended."""
    try:
        return in_status(Path(f"/proc/{pid}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def in_status(lines: Iterable[str]) -> int:
    """The same in the lines of /proc/PID/status, which has kB."""
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(_TAKEN))


def cached(file: Path) -> int:
    """Bytes of a file that are in the page cache, whoever brought them in; locked ones too."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        view = np.frombuffer(pages, np.uint8)
        found = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
        address, target = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(found.ctypes.data)
        failed = libc.mincore(address, ctypes.c_size_t(len(view)), target)
        del view  # a mapping that is looked at cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(file))
    return int((found & 1).sum()) * mmap.PAGESIZE


def forget(file: Path) -> None:
    """Nothing of a file is in the page cache afterwards, but what is mapped."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
