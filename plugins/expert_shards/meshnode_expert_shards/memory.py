"""How much of a model's experts a node has room for, beside the trunk and the context. Pure."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from meshnode_llama_cpp.backend import MOST_SLOTS, fit
from meshnode_llama_cpp.memory import need
from msgspec import structs

from p2p_mesh.serve.backend import Fit, Load, Refusal

SPARE = 0.1
"""The share of memory that further slots may take from experts."""
ASSUMED = 0.9
"""Of a model's weights, those of experts, where its parts are not here to tell: most have more."""


def seat(load: Load, available: int) -> Fit | Refusal:
    """The context and the slots of a shard within so many bytes, and the room that is left for
    experts. More slots than one are taken where they cost few experts.
    """
    load = _known(load)
    least = replace(_with(load, max(2, load.model.experts_used)), slots=load.slots or 1)
    base = fit(least, available)
    if isinstance(base, Refusal):
        return Refusal(f"No expert shard of {load.model.id} fits: {base.reason}", base.advice)
    context, slots = base.context, _slots(load, base.context, available)
    count = _count(load, context, slots, available)
    return Fit(
        context=context,
        slots=slots,
        memory_bytes=need(_with(load, count), context, slots),
        choice="shards",
        room=_bytes(load, count),
    )


def _known(load: Load) -> Load:
    model = load.model
    if model.expert_bytes:
        return load
    return replace(load, model=structs.replace(model, expert_bytes=int(model.size_bytes * ASSUMED)))


def _bytes(load: Load, count: int) -> int:
    """Of so many experts of each layer."""
    return load.model.expert_bytes * count // load.model.experts


def _with(load: Load, count: int) -> Load:
    """A shard with so many experts of each layer."""
    model = load.model
    size = model.size_bytes - model.expert_bytes + _bytes(load, min(count, model.experts))
    return replace(load, model=structs.replace(model, size_bytes=size))


def _count(load: Load, context: int, slots: int, available: int) -> int:
    """The most experts of each layer with which it fits."""
    counts = range(load.model.experts + 1)
    found = bisect_right(counts, available, key=lambda one: need(_with(load, one), context, slots))
    return max(0, found - 1)


def _slots(load: Load, context: int, available: int) -> int:
    if load.slots:
        return load.slots
    everything = _with(load, load.model.experts)
    one = need(everything, context, 1)
    return next(
        slots
        for slots in range(MOST_SLOTS, 0, -1)
        if slots == 1
        or (taken := need(everything, context, slots)) <= available
        or taken - one <= SPARE * available
    )
