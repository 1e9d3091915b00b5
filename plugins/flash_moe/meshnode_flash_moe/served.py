"""What a flash engine serves: a model that writes, and what the disk costs it.

How much memory is left for experts is known when all else is there. What comes later, such as the
snapshots of recurrent models, is left free.
"""

from __future__ import annotations

import time
from pathlib import Path

from meshnode_llama_cpp.context import Plan
from meshnode_llama_cpp.memory import SNAPSHOTS
from meshnode_llama_cpp.scheduler import Limits
from meshnode_llama_cpp.served import Progress, Writer

from meshnode_flash_moe import footprint, told
from meshnode_flash_moe.memory import margin
from meshnode_flash_moe.model import FlashContext, FlashModel
from p2p_mesh.core.reference import split_names
from p2p_mesh.errors import ModelError

_TRUNK = 0.1
"""Of the time that a model loads, what its trunk takes where all experts are read then."""


class FlashWriter(Writer):
    """A model that writes, with its experts on the disk."""

    def __init__(self, command: told.Open, progress: Progress) -> None:
        """Raises ModelError."""
        self._open = command
        paths = files(Path(command.open.path))
        self._flash = FlashModel(
            paths, name=command.open.name, progress=lambda share: progress(share * _TRUNK)
        )
        before = footprint.measure()
        super().__init__(self._flash, command.open, 0, rows=self._rows(), make=self._make)
        # Buffers are there, and mostly untouched; the weights of a draft are pages of its file.
        grown = footprint.measure().allocated - before.allocated
        self._take_room(before.resident + grown + _size(command.open.draft), progress)
        self._before, self._since = self._experts.spent.copy(), time.perf_counter()

    def tell(self) -> told.Told | None:
        """What the disk has cost since that was told last; None where it is too early."""
        now, spent, before = time.perf_counter(), self._experts.spent, self._before
        rows = spent.rows - before.rows
        if now - self._since < told.EVERY or not rows:
            return None
        self._since, self._before = now, spent.copy()
        waited, read = spent.seconds - before.seconds, spent.bytes - before.bytes
        return told.Told(
            hit_rate=_share(spent.found - before.found, spent.chosen - before.chosen, 1.0),
            disk_bytes_per_token=read / rows,
            disk_bandwidth=_share(read, spent.reading - before.reading, 0.0),
            disk_wait=min(1.0, _share(waited, spent.all - before.all, 0.0)),
            expert_bytes_cached=self._experts.residency.taken,
            expert_bytes=self._experts.total,
            tokens=spent.rows,
        )

    def numerics(self, device: str) -> str:
        """Weights are computed with as they stand in the file, which llama.cpp otherwise lays out
        anew where that is faster: for some types the last bits are others.
        """
        return f"{super().numerics(device)} flash"

    def _rows(self) -> int:
        """Of a call: all experts that its rows may go through must have room."""
        layout, slots = self._flash.layout, self._open.open.slots
        size = max(layer.size for layer in layout.layers)
        room = self._open.experts // size
        self._least = size * min(layout.experts, room)
        if room >= layout.experts:
            return Limits().rows
        if room < slots * layout.used:
            raise ModelError(
                f"{self._flash.name} has room for {room} experts of a layer; {slots} answers at a "
                f"time go through {slots * layout.used}. Give it more memory (--max-memory), or "
                f"fewer slots (--parallel)."
            )
        return min(room // layout.used, Limits().rows)

    def _make(self, plan: Plan) -> FlashContext:
        self._context = FlashContext(self._flash, plan, room=self._open.experts)
        self._experts = self._context.experts
        return self._context

    def _take_room(self, beside: int, progress: Progress) -> None:
        """All that is left. Where there is room for all experts they come now, as the weights of
        a model that is loaded whole.
        """
        taken = beside + self._experts.edges + margin(self._experts.total)
        if self._flash.is_recurrent or (self._flash.window and not self._open.open.deterministic):
            taken += SNAPSHOTS
        room = self._open.memory - taken
        if room < self._least:
            raise ModelError(
                f"{self._flash.name} takes {taken >> 20} MiB beside its experts, and of these "
                f"{self._least >> 20} MiB must have room; {self._open.memory >> 20} MiB are "
                f"allowed. Give it more memory (--max-memory)."
            )
        self._experts.residency.room = room
        if room >= self._experts.total:
            for share in self._context.fill():
                progress(_TRUNK + share * (1 - _TRUNK))


def files(path: Path) -> list[Path]:
    """The files that a model is split into, given the first of them."""
    return [path.with_name(name) for name in split_names(path.name)]


def _size(path: str | None) -> int:
    return Path(path).stat().st_size if path is not None else 0


def _share(part: float, whole: float, otherwise: float) -> float:
    return part / whole if whole else otherwise
