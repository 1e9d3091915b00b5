"""The llama.cpp backend: what a model takes, and an engine process for it.

`assess` decides and does nothing; `open` does what it is told, and where it is told nothing, what
`assess` would have said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshnode_llama_cpp.engine import LlamaEngine, run_engine
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Fit, Load, Mesh, Refusal

MOST_CONTEXT = 8192
"""More only where somebody asks for more: a KV cache is paid for when the model loads."""
LEAST_CONTEXT = 512
MOST_SLOTS = 4
_SEQUENCES, _POSITIONS = 256, 2**31 - 1
_STEP = 256  # llama.cpp rounds a context up to it
_PROCESS = 96 * 2**20  # Python, libraries, small buffers
_MOST_COMPUTE = 2**30


class LlamaCpp:
    """Whole models, in any GGUF that llama.cpp loads."""

    name = "llama_cpp"

    def __init__(self, *, exact: bool = False) -> None:
        """`exact`: an answer is the same alone, in company and resumed; prompts are read slower."""
        self._exact = exact

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
        async with run_engine(load, plan, exact=self._exact) as engine:
            yield engine


def fit(load: Load, available: int | None) -> Fit | Refusal:
    """The largest default that fits, the context before the slots; None: memory is no question."""
    model, trained = load.model, load.model.context_length
    if load.context is not None and 0 < trained < load.context:
        return Refusal(
            f"{model.id} was trained for a context of {trained} tokens, not {load.context}.",
            f"Ask for {trained} or fewer.",
        )
    context = load.context or min(trained or MOST_CONTEXT, MOST_CONTEXT)
    if (load.slots or 1) > _SEQUENCES or context * (load.slots or 1) > _POSITIONS:
        return Refusal(
            f"llama.cpp holds {_SEQUENCES} slots and {_POSITIONS} tokens at most.",
            "Ask for fewer slots, or a shorter context.",
        )
    for slots in [load.slots] if load.slots else range(MOST_SLOTS, 0, -1):
        need = memory(model, context, slots)
        if available is None or need <= available:
            return Fit(context=context, slots=slots, memory_bytes=need)
    least = load.slots or 1
    longest = _longest(model, least, available or 0)
    if load.context is None and longest >= LEAST_CONTEXT:
        return Fit(context=longest, slots=least, memory_bytes=memory(model, longest, least))
    return _too_large(load, context, available or 0, longest)


def memory(model: ModelFile, context: int, slots: int) -> int:
    """Bytes for weights, KV cache and compute buffers; the last are an estimate."""
    compute = _PROCESS + min(model.size_bytes // 16, _MOST_COMPUTE)
    return model.size_bytes + compute + model.kv_bytes_per_token * context * slots


def _longest(model: ModelFile, slots: int, available: int) -> int:
    """The longest context that fits, a multiple of what llama.cpp rounds to."""
    room = available - memory(model, 0, slots)
    if room <= 0:
        return 0
    most = min(model.context_length or MOST_CONTEXT, MOST_CONTEXT)
    each = max(1, model.kv_bytes_per_token * slots)
    return min(room // each, most) // _STEP * _STEP


def _too_large(load: Load, context: int, available: int, longest: int) -> Refusal:
    slots = load.slots or 1
    need = memory(load.model, context, slots)
    reason = (
        f"{load.model.id} needs {_gigabytes(need)} GB for a context of {context} tokens"
        f"{f' in {slots} slots' if slots > 1 else ''}; {_gigabytes(available)} GB are free."
    )
    if longest >= LEAST_CONTEXT:
        return Refusal(reason, f"A context of {longest} tokens would fit.")
    if slots > 1:
        return Refusal(reason, "Fewer slots would need less.")
    least = memory(load.model, LEAST_CONTEXT, 1)
    return Refusal(reason, f"No less than {_gigabytes(least)} GB will do.")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}"
