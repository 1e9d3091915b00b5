"""The node's side of a flash engine: a llama_cpp engine that tells what its disk costs.

What it tells is shown as measures. When it has waited for the disk for more than half of the time,
for LASTING reports, that is said once; and again when it no longer does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from meshnode_llama_cpp.engine import LlamaEngine, open_command
from meshnode_llama_cpp.process import start
from msgspec import structs

from meshnode_flash_moe.memory import Room
from meshnode_flash_moe.told import Open, Told, reports
from p2p_mesh.serve.backend import Description, Fit, Load

WORKER = "meshnode_flash_moe.worker"

LASTING = 5
"""Reports in a row, about a second each, after which what they say is said to the user."""
MUCH = 0.5
"""Of the time: whoever waits for longer is held up by the disk more than by anything else."""

Say = Callable[[str, str], None]


class Limit:
    """Whether the disk is what limits an engine, by its reports."""

    def __init__(self) -> None:
        self.is_disk = False
        self._contrary = 0

    def changes(self, wait: float) -> bool:
        """Takes a report's share of waiting; whether the answer is another one now."""
        self._contrary = self._contrary + 1 if (wait > MUCH) != self.is_disk else 0
        if self._contrary < LASTING:
            return False
        self.is_disk, self._contrary = not self.is_disk, 0
        return True


class FlashEngine(LlamaEngine):
    """A model whose experts are read from the disk. Made by `run_engine`."""

    def __init__(self, *given: Any, room: Room, expert_bytes: int, say: Say, **more: Any) -> None:
        super().__init__(*given, **more, reports=reports)
        self._room, self._expert_bytes, self._say = room, expert_bytes, say
        self._told: Told | None = None
        self._limit = Limit()

    def describe(self) -> Description:
        about = super().describe()
        return replace(about, measures=self._measures(), notes=(*about.notes, self._note()))

    def _measures(self) -> dict[str, float]:
        """Nothing before it has computed something."""
        told = self._told
        if told is None:
            return {}
        return {
            "expert_hit_rate": told.hit_rate,
            "expert_cache_bytes": told.expert_bytes_cached,
            "expert_bytes": told.expert_bytes,
            "disk_bytes_per_token": told.disk_bytes_per_token,
            "disk_bandwidth_bytes": told.disk_bandwidth,
            "disk_wait_share": told.disk_wait,
        }

    def _note(self) -> str:
        if self._told is None:
            return (
                f"experts from the disk: room for {self._room.experts / 1e9:.1f} of "
                f"{self._expert_bytes / 1e9:.1f} GB of them in memory"
            )
        return (
            f"experts from the disk: {self._told.expert_bytes_cached / 1e9:.1f} of "
            f"{self._told.expert_bytes / 1e9:.1f} GB of them in memory"
        )

    def _take(self, report: Any) -> None:
        if not isinstance(report, Told):
            super()._take(report)
            return
        self._told = report
        if not self._limit.changes(report.disk_wait):
            return
        if self._limit.is_disk:
            self._say(
                "disk_limits",
                f"{self._name} waits for the disk {report.disk_wait:.0%} of the time: it finds "
                f"{report.hit_rate:.0%} of the experts in memory, and reads "
                f"{report.disk_bytes_per_token / 1e6:.0f} MB a token at "
                f"{report.disk_bandwidth / 1e9:.1f} GB/s; more --max-memory would help",
            )
        else:
            self._say("disk_keeps_up", f"{self._name} waits for the disk no longer")


@asynccontextmanager
async def run_engine(
    load: Load, room: Room, say: Say, *, worker: str = WORKER
) -> AsyncIterator[FlashEngine]:
    """Starts a process, loads the model, and ends the process when the context is left. Raises
    ModelError and EngineDied.
    """
    process, stream = await start(worker)
    plan = Fit(room.context, room.slots, room.total, choice="flash")
    engine = FlashEngine(
        load.model.id, plan, process, stream, progress=load.progress, room=room,
        expert_bytes=load.model.expert_bytes, say=say,
    )  # fmt: skip
    async with engine.running(command(load, plan, room)):
        yield engine


def command(load: Load, plan: Fit, room: Room) -> Open:
    """What the engine is told first. It guesses tokens only where somebody wants that: a guess
    that is wrong has read its experts for nothing.
    """
    wants_guesses = load.draft is not None if load.speculation is None else load.speculation
    opened = structs.replace(
        open_command(load, plan), memory_limit=None, gpu_layers=0, speculation=wants_guesses
    )
    return Open(opened, memory=room.total, experts=room.experts)
