"""What this process takes of the memory, as the system counts it (proc(5), status).

Buffers of calls are allocated at once and touched when a call is large enough, so what is resident
now says too little, and what is allocated too much: the system counts stacks and pools that are
never touched. So the one is measured, and the growth of the other while buffers are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes."""

    resident: int
    """Of memory that belongs to no file,"""
    allocated: int
    """and of what was asked for."""


def measure() -> Footprint:
    """Raises OSError where the system does not tell."""
    return read(_STATUS.read_text())


def read(status: str) -> Footprint:
    """As the system writes it, in kB."""
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        resident, allocated = (int(found[key].split()[0]) << 10 for key in ("RssAnon", "VmData"))
    except (KeyError, ValueError, IndexError) as error:
        raise OSError(f"{_STATUS} does not say how much memory is taken: {error}") from error
    return Footprint(resident, allocated)
