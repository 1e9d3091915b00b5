"""What this machine has to run models with."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from p2p_mesh.core.records import Resources

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
