"""How the memory of a flash engine is shared out: what must be in it, and how much is left for
experts. Pure.

The trunk, the KV cache and the buffers of calls are there always. Experts take what is left, up to
all of them: the more, the fewer come from the disk. So a long context or many slots, where nobody
asked for them, may cost a QUARTER of the room for experts and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import meshnode_llama_cpp.memory
from meshnode_llama_cpp.backend import LEAST_CONTEXT, MOST_SLOTS
from msgspec import structs

from p2p_mesh.core.experts.speed import routed_bytes, trunk_bytes
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.serve.backend import Load

RESERVE = 8
"""Where its user set no limit, or one above what is free, one part in so many of that stays free:
experts are nothing that the system could take back.
"""
_QUARTER = 4
_MARGIN = 32 << 20
_PAGE, _ENTRY = 4096, 8
"""Bytes, and those of its entry in a table of pages."""
_SLICES = 3
"""Of an expert: gate, up and down, each of which begins and ends within a page."""


@dataclass(frozen=True, slots=True)
class Room:
    """How large a load is, and what it leaves for experts, in bytes."""

    context: int
    slots: int
    beside: int
    """All but routed experts."""
    experts: int

    @property
    def total(self) -> int:
        return self.beside + self.experts


def available(load: Load, resources: Resources) -> int:
    """Bytes that an engine may take."""
    free, limit = resources.memory_free, load.memory_limit
    if limit is not None and limit <= free:
        return limit
    return free - free // RESERVE


def beside(load: Load, context: int, slots: int) -> int:
    """Bytes of all but the routed experts: trunk, KV cache, buffers, process, and the pages that
    experts share.
    """
    model = load.model
    trunk = structs.replace(model, size_bytes=trunk_bytes(model))
    shared = _PAGE * _SLICES * model.experts * model.expert_layers
    kept = meshnode_llama_cpp.memory.need(replace(load, model=trunk), context, slots)
    return kept + shared + margin(model.expert_bytes)


def margin(expert_bytes: int) -> int:
    """Bytes that are left free: requests, what allocators keep, and the tables of all pages that
    were ever used.
    """
    return _MARGIN + expert_bytes // (_PAGE // _ENTRY)


def least_experts(model: ModelFile) -> int:
    """Bytes of experts without which there is no use in beginning: all of one layer, for a prompt
    may want them together, and those of one token in all layers.
    """
    layer = -(-model.expert_bytes // max(1, model.expert_layers))
    return max(layer, routed_bytes(model))


def share(load: Load, memory: int, longest: int) -> Room | None:
    """The largest default that leaves experts their room, the context before the slots; what was
    asked for is kept, if it leaves the least. None where nothing does. `longest`: the context that
    is wanted where there is room.
    """
    model = load.model
    rooms = [_room(load, memory, size) for size in _sizes(load, longest)]
    smallest = rooms[-1]
    spare = min(model.expert_bytes, smallest.experts - smallest.experts // _QUARTER)
    for room in rooms:
        if room.experts >= max(spare, least_experts(model)):
            return room
    return smallest if smallest.experts >= least_experts(model) else None


def least(load: Load, longest: int) -> int:
    """Bytes without which nothing of it is served."""
    *_, (context, slots) = _sizes(load, longest)
    return beside(load, context, slots) + least_experts(load.model)


def _room(load: Load, memory: int, size: tuple[int, int]) -> Room:
    taken = beside(load, *size)
    return Room(*size, beside=taken, experts=min(load.model.expert_bytes, memory - taken))


def _sizes(load: Load, longest: int) -> Iterator[tuple[int, int]]:
    """Contexts and slots, the best first, the smallest last."""
    for slots in [load.slots] if load.slots else range(MOST_SLOTS, 0, -1):
        yield longest, slots
    context = longest
    while load.context is None and context // 2 >= LEAST_CONTEXT:
        context //= 2
        yield context, load.slots or 1
