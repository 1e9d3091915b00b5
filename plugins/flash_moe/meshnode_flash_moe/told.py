"""What passes between the node and a flash engine: the frames of a llama_cpp engine, and two more.
The first command is how to open the model, with the memory that it may take; and now and then the
engine tells what the disk costs it.
"""

from __future__ import annotations

import msgspec
from meshnode_llama_cpp import frames
from msgspec import Struct

EVERY = 1.0
"""Seconds between two reports of an engine that computes, at least."""


class Open(Struct, frozen=True, tag="flash-open"):
    """Load this model, its trunk alone. Comes first, and once."""

    open: frames.Open
    memory: int
    """Bytes that the process may take for all that belongs to the model: trunk, KV cache, buffers
    of calls and experts,
    """
    experts: int
    """and of them those that are left for experts, as estimated before anything was loaded."""


class Told(Struct, frozen=True, kw_only=True, tag="flash-told"):
    """What the engine has measured of itself: at most once in EVERY seconds, and only while it
    computes. Rates are of the time since the last report.
    """

    hit_rate: float
    """The share of the chosen experts that were in memory, 0 to 1."""
    disk_bytes_per_token: float
    disk_bandwidth: float
    """Bytes a second, while the disk was read."""
    disk_wait: float
    """The share of the time in which there was nothing to do but wait for the disk, 0 to 1."""
    expert_bytes_cached: int
    """Bytes of experts that are in memory now,"""
    expert_bytes: int
    """and those of all experts."""
    tokens: int
    """Rows computed since the engine began."""


Command = Open | frames.Ask | frames.Look | frames.Cancel
Report = frames.Report | Told


def commands() -> frames.Frames[Command]:
    return frames.Frames(msgspec.msgpack.Decoder(Command))


def reports() -> frames.Frames[Report]:
    return frames.Frames(msgspec.msgpack.Decoder(Report))
