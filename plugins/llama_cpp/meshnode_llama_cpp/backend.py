"""The llama.cpp backend: what a model takes, and an engine process for it.

`assess` decides and does nothing; `open` does what it is told, and where it is told nothing, what
`assess` would have said.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from msgspec import structs

from meshnode_llama_cpp.engine import LlamaEngine, run_engine
from meshnode_llama_cpp.memory import BITS, STEP, need
from p2p_mesh.core.records import KvType, ModelFile, Resources
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Fit, Load, Mesh, Refusal

MOST_CONTEXT = 8192
"""More only where somebody asks for more: a KV cache is paid for when the model loads."""
LEAST_CONTEXT = 512
MOST_SLOTS = 4
EXACT_SLOTS = 48
"""Rows of a call in which none depends on the others (scheduler.EXACT): each answer needs one."""
_SEQUENCES, _POSITIONS = 256, 2**31 - 1


class LlamaCpp:
    """Whole models, in any GGUF that llama.cpp loads."""

    name = "llama_cpp"

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        available = resources.memory_free
        if load.memory_limit is not None:
            available = min(available, load.memory_limit)
        return fit(load, available)

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[LlamaEngine]:
        """An engine with the context and the slots that were asked for."""
        plan = fit(load, load.memory_limit)
        if isinstance(plan, Refusal):
            raise ModelError(f"{plan.reason} {plan.advice}".strip())
        if await trio.Path(load.model.path).is_dir():
            load = replace(load, model=await _in_one_file(load, mesh))
        async with run_engine(load, plan) as engine:
            yield engine


async def _in_one_file(load: Load, mesh: Mesh) -> ModelFile:
    """A model that is a package, as llama.cpp can load it."""
    package = await mesh.package(load.model)
    path = await package.whole(load.progress)
    return structs.replace(load.model, path=str(path))


def fit(load: Load, available: int | None) -> Fit | Refusal:
    """The largest default that fits, the context before the slots; None: memory is no question."""
    if refusal := _impossible(load):
        return refusal
    context = _wanted(load)
    for slots in [load.slots] if load.slots else range(MOST_SLOTS, 0, -1):
        taken = need(load, context, slots)
        if available is None or taken <= available:
            return Fit(context=context, slots=slots, memory_bytes=taken)
    least = load.slots or 1
    longest = _longest(load, least, available or 0)
    if load.context is None and longest >= LEAST_CONTEXT:
        return Fit(context=longest, slots=least, memory_bytes=need(load, longest, least))
    return _too_large(load, available or 0, longest)


def _wanted(load: Load) -> int:
    return load.context or min(load.model.context_length or MOST_CONTEXT, MOST_CONTEXT)


def _impossible(load: Load) -> Refusal | None:
    """What no amount of memory would help."""
    model, trained = load.model, load.model.context_length
    if load.context is not None and 0 < trained < load.context:
        return Refusal(
            f"{model.id} was trained for a context of {trained} tokens, not {load.context}.",
            f"Ask for {trained} or fewer.",
        )
    slots = load.slots or 1
    if slots > _SEQUENCES or _wanted(load) * slots > _POSITIONS:
        return Refusal(
            f"llama.cpp holds {_SEQUENCES} slots and {_POSITIONS} tokens at most.",
            "Ask for fewer slots, or a shorter context.",
        )
    if load.deterministic and slots > EXACT_SLOTS:
        return Refusal(
            f"a deterministic engine answers {EXACT_SLOTS} requests at a time, at most.",
            "Ask for fewer slots.",
        )
    return None


def _longest(load: Load, slots: int, available: int) -> int:
    """The longest context that fits, a multiple of what llama.cpp rounds to."""
    steps = range(_wanted(load) // STEP + 1)
    # What is needed grows with the context, so the first that is too long is found by halves.
    return STEP * max(
        0, bisect_right(steps, available, key=lambda step: need(load, step * STEP, slots)) - 1
    )


def _too_large(load: Load, available: int, longest: int) -> Refusal:
    """What is wanted and what there is, and all that would help, with numbers."""
    slots, context = load.slots or 1, _wanted(load)
    reason = (
        f"{load.model.id} needs {_gigabytes(need(load, context, slots))} GB for a context of "
        f"{context} tokens{f' in {slots} slots' if slots > 1 else ''}; "
        f"{_gigabytes(available)} GB are free."
    )
    ways = [f"a context of {longest} tokens"] if longest >= LEAST_CONTEXT else []
    ways += [
        f"the KV type {kind} ({_gigabytes(need(load, context, slots, kind))} GB)"
        for kind in _smaller(load)
        if need(load, context, slots, kind) <= available
    ]
    if slots > 1 and need(load, context, 1) <= available:
        ways.append(f"fewer slots (one: {_gigabytes(need(load, context, 1))} GB)")
    if ways:
        return Refusal(reason, f"Would fit: {', or '.join(ways)}.")
    least = min(need(load, LEAST_CONTEXT, 1, kind) for kind in BITS)
    return Refusal(reason, f"No less than {_gigabytes(least)} GB will do.")


def _smaller(load: Load) -> list[KvType]:
    """The KV types that take less than the one that is wanted."""
    return [kind for kind in BITS if BITS[kind] < BITS[load.kv_type or "f16"]]


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}"
