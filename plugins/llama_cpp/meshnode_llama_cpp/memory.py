"""How much memory a load takes, and how many layers go to GPUs. Pure.

Estimates are upper bounds. Weights and KV cache are known; buffers and the process are not, and
are set from measurements: 2 % to 15 % above what was allocated, for random models of 140 to 700 MB.
What an engine allocates and never touches counts as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode_llama_cpp.roles import ENCODERS
from p2p_mesh.core.records import KvType, ModelFile
from p2p_mesh.serve.backend import Load

STEP = 256
"""llama.cpp rounds a context up to it."""
BITS: dict[KvType, float] = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}
"""Of one number in the KV cache: blocks of 32 numbers have 64, 34 and 18 bytes."""
SNAPSHOTS = 256 * 2**20
"""Up to which an engine keeps snapshots of what sequences had read, where memory cannot go back:
it is a state, or a sliding window.
"""
ENCODINGS = 128 * 2**20
"""Up to which it keeps encodings of images and sounds."""

PLAIN_ROWS = 128
"""Of one call without flash attention, which keeps a number for each row, head and cell. Measured:
on a CPU a prompt is read as fast so as with more.
"""
_PLAIN_SLOTS = 4
_MOST_SCORES = 512 * 2**20
_ROWS = 512
"""Of one call: a sliding layer keeps so many tokens beside its window."""
_PROCESS = 96 * 2**20
"""Python, libraries, small buffers."""
_COMPUTE_SHARE, _MOST_COMPUTE = 9, 2**30
"""A call of 512 rows took up to a tenth of the weights of small models, less of large ones."""
_MASK_ROW = 512 * 4
"""Bytes of the attention masks of a call, for each token of the context."""
_GPU_OVERHEAD = 400 * 2**20
"""What a GPU's driver and the buffers of a call take."""


def need(load: Load, context: int, slots: int, kv_type: KvType | None = None) -> int:
    """Bytes for weights, KV cache, buffers and what is kept of earlier prompts, with those of the
    draft model and the projector; with another KV type than the load's, if one is given.
    """
    kind = kv_type or load.kv_type or "f16"
    models = [load.model] + ([load.draft] if load.draft is not None else [])
    cells = _cells(context)
    total = _PROCESS + sum(
        model.size_bytes
        + _kept(model, cells, kind, windows=not load.deterministic) * slots
        + _call(model, cells)
        + (0 if flashes(load, context, slots, kind) else _scores(model, cells))
        for model in models
    )
    if load.model.state_bytes or (load.model.window and not load.deterministic):
        total += SNAPSHOTS
    if load.projector is not None:
        total += load.projector.size_bytes + _call(load.projector, 0) + ENCODINGS
    return total


def flashes(load: Load, context: int, slots: int, kv_type: KvType | None = None) -> bool:
    """Whether attention is llama.cpp's flash attention also where all layers are on a CPU.

    There it goes over the cells of a sequence one by one, and takes three to four times as long as
    without (measured on two CPUs: an answer after 3,000 tokens is written at 1.3 to 2 times the
    speed without it, after fewer than 250 at 0.95). But without it all sequences of a call go over
    as many cells as the longest has: so only where few of them share a call. An engine that is
    `deterministic`, and quantised caches, need it.
    """
    return (
        slots > _PLAIN_SLOTS
        or load.deterministic
        or (kv_type or load.kv_type or "f16") != "f16"
        or not 0 < _scores(load.model, _cells(context)) <= _MOST_SCORES
    )


def gpu_layers(
    layers: int,
    *,
    layer_bytes: int,
    kv_bytes_per_layer: int,
    output_bytes: int,
    free: Sequence[int],
) -> int:
    """How many layers go to GPUs with so many bytes free, as llama.cpp's `n_gpu_layers` counts
    them: one more than the model's `layers` where the output goes there as well. llama.cpp deals
    the layers out in proportion to what is free, the output to the last.
    """
    for count in range(layers + 1, 0, -1):
        dealt = _dealt(min(count, layers), free)
        taken = [one * (layer_bytes + kv_bytes_per_layer) for one in dealt]
        if taken and count > layers:
            taken[-1] += output_bytes
        if taken and all(
            one + _GPU_OVERHEAD <= room for one, room in zip(taken, free, strict=True) if one
        ):
            return count
    return 0


def _dealt(layers: int, free: Sequence[int]) -> list[int]:
    """The most layers that each GPU may get, in proportion to what is free."""
    total = sum(free)
    return [-(-layers * room // total) for room in free] if total else []


def _cells(context: int) -> int:
    return -(-context // STEP) * STEP


def _scores(model: ModelFile, cells: int) -> int:
    """What attention without flash attention keeps in a call; 0 where there is none, or its heads
    are not known.
    """
    return 0 if not model.kv_bytes_per_token else 4 * PLAIN_ROWS * model.heads * cells


def _kept(model: ModelFile, cells: int, kind: KvType, *, windows: bool) -> int:
    """Of one sequence; `windows`: sliding layers keep no more than they see. A state is never
    quantised.
    """
    seen = min(cells, -(-(model.window + _ROWS) // STEP) * STEP) if windows else cells
    beyond = model.window_bytes_per_token * (cells - seen)
    cache = int((model.kv_bytes_per_token * cells - beyond) * BITS[kind] / 16)
    return cache + model.state_bytes


def _call(model: ModelFile, cells: int) -> int:
    """Masks and intermediate results. An encoder sees a text as a whole: one call has as many
    rows as the context.
    """
    compute = min(model.size_bytes // _COMPUTE_SHARE, _MOST_COMPUTE)
    if model.state_bytes and not model.kv_bytes_per_token:
        return compute
    square = 4 * cells if model.architecture in ENCODERS else 0
    return compute + cells * (_MASK_ROW + square)
