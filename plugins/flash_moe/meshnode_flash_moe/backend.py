"""The flash backend: whether a mixture of experts could be served with its experts on the disk, and
an engine process for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from meshnode_llama_cpp.backend import fit
from meshnode_llama_cpp.roles import ENCODERS
from msgspec import structs

from meshnode_flash_moe.engine import WORKER, FlashEngine, run_engine
from meshnode_flash_moe.memory import Room, available, beside, least, least_experts, share
from p2p_mesh.core.experts.speed import flash_speed, hit_rate, missed_bytes, trunk_bytes
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Fit, Load, Mesh, Refusal

_HUNDREDTH = 10**7
"""Bytes, of a gigabyte."""


class FlashMoe:
    """Mixtures of experts whose trunk fits the memory."""

    name = "flash_moe"

    def __init__(self, *, worker: str = WORKER) -> None:
        self._worker = worker

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        """The same whether or not `load.flash` is set: who wants it so is asked elsewhere."""
        room = _room(load, available(load, resources))
        if isinstance(room, Refusal):
            return room
        return Fit(
            context=room.context,
            slots=room.slots,
            memory_bytes=room.total,
            tokens_per_second=flash_speed(load.model, resources, room.experts),
            choice="flash",
            details=_details(load.model, resources, room),
        )

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[FlashEngine]:
        """An engine that takes no more than `load.memory_limit`, which is what was leased."""
        most = load.memory_limit
        room = _room(load, available(load, mesh.resources()) if most is None else most)
        if isinstance(room, Refusal):
            raise ModelError(f"{room.reason} {room.advice}".strip())
        if await trio.Path(load.model.path).is_dir():
            load = replace(load, model=await _in_one_file(load, mesh))
        async with run_engine(load, room, mesh.say, worker=self._worker) as engine:
            yield engine


async def _in_one_file(load: Load, mesh: Mesh) -> ModelFile:
    """A model that is a package, as llama.cpp can load it."""
    package = await mesh.package(load.model)
    path = await package.whole(load.progress)
    return structs.replace(load.model, path=str(path))


def _room(load: Load, memory: int) -> Room | Refusal:
    """How the memory would be shared out."""
    if refusal := _impossible(load):
        return refusal
    anywhere = fit(load, None)
    if isinstance(anywhere, Refusal):
        return anywhere
    return share(load, memory, anywhere.context) or _too_large(load, memory, anywhere.context)


def _impossible(load: Load) -> Refusal | None:
    """What no amount of memory would help."""
    model = load.model
    if not (model.experts and model.expert_bytes):
        return Refusal(f"{model.id} is no mixture of experts.")
    if model.architecture in ENCODERS:
        return Refusal(f"{model.id} writes no text, and flash serves models that write.")
    if load.projector is not None:
        return Refusal(
            f"{model.id} is not served with its experts on the disk and a projector.",
            "Leave out --mmproj.",
        )
    if load.gpu_layers:
        return Refusal(
            f"experts that are read from the disk are computed by processors, and {model.id} is "
            f"wanted with {load.gpu_layers} layers on GPUs.",
            "Leave out --gpu-layers.",
        )
    return None


def _too_large(load: Load, memory: int, longest: int) -> Refusal:
    """What must be in memory, and what there is, with numbers."""
    model, slots = load.model, load.slots or 1
    trunk, others = trunk_bytes(model), beside(load, longest, slots) - trunk_bytes(model)
    return Refusal(
        f"{model.id} with its experts on the disk needs {_at_least(trunk)} GB for its trunk, "
        f"{_at_least(others)} GB for a context of {longest} tokens and what else it computes "
        f"with, and {_at_least(least_experts(model))} GB for experts, at least; "
        f"{memory // _HUNDREDTH / 100:.2f} GB may be taken.",
        f"No less than {_at_least(least(load, longest))} GB will do.",
    )


def _details(model: ModelFile, resources: Resources, room: Room) -> dict[str, float]:
    """What the expected speed is made of."""
    found = {
        "trunk_bytes": trunk_bytes(model),
        "cache_bytes": room.experts,
        "cache_share": room.experts / model.expert_bytes,
        "hit_rate": hit_rate(model, room.experts),
        "bytes_per_token": missed_bytes(model, room.experts),
    }
    return {**found, "disk_bandwidth": resources.disk} if resources.disk else found


def _at_least(count: int) -> str:
    """Gigabytes that are enough: never less than what is meant."""
    return f"{-(-count // _HUNDREDTH) / 100:.2f}"
