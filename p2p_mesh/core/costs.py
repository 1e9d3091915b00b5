"""What a stage of a model takes, in memory and in time, and the law of a pipeline's speed.

Memory is what the engine's own estimate would be of a model that had these layers alone
(meshnode_llama_cpp/memory.py): weights and KV cache are known, buffers and the process are bounds.
A stage without vocabulary holds neither embeddings nor head.

The law: a token takes what all stages compute, one round trip where they are two, and one one-way
delay for each further stage, since the last one answers the first directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.package import Manifest
from p2p_mesh.core.records import KvType
from p2p_mesh.core.sizing import Kept, kept
from p2p_mesh.errors import ModelError

Wire = Literal["f32", "f16", "q8"]

WIRE_BYTES: dict[Wire, float] = {"f32": 4, "f16": 2, "q8": 34 / 32}
"""Of one number of an activation."""
KV_BITS: dict[KvType, float] = {"f16": 16, "q8_0": 8.5, "q4_0": 4.5}
"""Of one number in the KV cache."""

PROCESS = 96 * 2**20
"""An engine's process: Python, libraries, small buffers."""
HOP = 0.00045
"""Seconds that a link costs beside its delay: both engines, both nodes (measured on loopback)."""

MOST_CONTEXT, LEAST_CONTEXT, MOST_SLOTS = 8192, 512, 4
"""What is tried where nobody asks for more, or less."""

_STEP = 256
_ROWS = 512
_COMPUTE_SHARE, _MOST_COMPUTE = 9, 2**30
_MASK_ROW = 512 * 4
_SMALL = 64
"""A norm has at most so little of the bytes of a vocabulary; a head has more, in any type."""
_EXPERTS = 0.9
"""Of a layer of experts, roughly: the rest is attention, which every token reads."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a model; bytes."""

    size: int
    """Of its weights."""
    kv: int = 0
    """Of its KV cache, for one token,"""
    window: int = 0
    """which sees so many tokens at most; 0: all."""
    state: int = 0
    """What it keeps of a sequence, however long."""
    read: int | None = None
    """Of its weights, what one token needs; None: all."""


def _nothing(_start: int, _end: int) -> str:
    return ""


class Needs(Protocol):
    """The parts of a package that a stage needs."""

    @property
    def blocks(self) -> Sequence[int]: ...
    @property
    def embeddings(self) -> bool: ...
    @property
    def output(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """They, where a family has no rules of its own."""

    blocks: Sequence[int]
    embeddings: bool
    output: bool


@dataclass(frozen=True, slots=True)
class StageModel:
    """A model as a plan sees it: with its context and slots, and its family's rules."""

    id: str
    manifest: str
    """The SHA-256 of its package's manifest."""
    layers: tuple[Layer, ...]
    first_bytes: int = 0
    """Weights of the first stage alone: the embeddings,"""
    last_bytes: int = 0
    """of the last alone: the head,"""
    common_bytes: int = 0
    """and of every stage."""
    is_tied: bool = False
    """The head is the embeddings: the last stage holds them too, and reads them."""
    context: int = 4096
    slots: int = 1
    row_bytes: int = 0
    """Of one token's activation, as it travels."""
    obstacle: Callable[[int, int], str] = _nothing
    """Why there can be no stage of these layers; empty: there can."""
    needs: Callable[[int, int], Needs] | None = None
    """The parts that such a stage holds, where they are not its layers and its vocabulary alone."""

    @property
    def total(self) -> int:
        return len(self.layers)

    def need(self, start: int, end: int) -> int:
        """Bytes of memory that a stage takes: weights, KV cache and states, buffers, process."""
        parts = self._parts(start, end)
        layers = [self.layers[one] for one in parts.blocks if one < self.total]
        cells = -(-self.context // _STEP) * _STEP
        weights = (
            sum(one.size for one in layers)
            + self.common_bytes
            + self.first_bytes * parts.embeddings
            + self.last_bytes * parts.output
        )
        cache = sum(_cells(one, cells) * one.kv + one.state for one in layers) * self.slots
        compute = min(weights // _COMPUTE_SHARE, _MOST_COMPUTE) + cells * _MASK_ROW
        return PROCESS + weights + cache + compute

    def _parts(self, start: int, end: int) -> Needs:
        if self.needs is not None:
            return self.needs(start, end)
        is_last = end == self.total
        return Parts(range(start, end), start == 0 or (is_last and self.is_tied), is_last)

    def read(self, start: int, end: int) -> int:
        """Bytes of weights that a stage reads for one token. Of the embeddings, that is a row."""
        total = sum(one.size if one.read is None else one.read for one in self.layers[start:end])
        if end < self.total:
            return total
        return total + self.last_bytes + self.first_bytes * self.is_tied


def _cells(layer: Layer, cells: int) -> int:
    if not layer.window:
        return cells
    return min(cells, -(-(layer.window + _ROWS) // _STEP) * _STEP)


class Cutting(Protocol):
    """What a family's rules say of a model (core/families)."""

    @property
    def total(self) -> int: ...

    def obstacle(self, start: int, end: int) -> str: ...

    def needs(self, start: int, end: int) -> Needs: ...


def stage_model(
    manifest: Manifest,
    header: Header,
    cutting: Cutting,
    *,
    sha256: str,
    context: int,
    slots: int,
    model: str = "",
    kv_type: KvType = "f16",
    wire: Wire = "f32",
) -> StageModel:
    """A package as a plan sees it. Raises ModelError where its parts are not its header's."""
    total = cutting.total
    if not 0 < total <= len(manifest.layers):
        raise ModelError(
            f"{manifest.model_id} has {total} layers and its package {len(manifest.layers)}: "
            "it was not built whole; build it again"
        )
    keeps = (*kept(header)[:total], *(Kept(),) * total)
    return StageModel(
        id=model or manifest.model_id,
        manifest=sha256,
        layers=tuple(
            _layer(one.tensor_bytes, keeps[place], kv_type, _share(header, place))
            for place, one in enumerate(manifest.layers[:total])
        ),
        first_bytes=manifest.embeddings.tensor_bytes,
        last_bytes=manifest.output.tensor_bytes,
        common_bytes=manifest.metadata.tensor_bytes,
        is_tied=_is_tied(cutting),
        context=context,
        slots=slots,
        row_bytes=int(manifest.activation_width * WIRE_BYTES[wire]),
        obstacle=cutting.obstacle,
        needs=cutting.needs,
    )


def is_tied(manifest: Manifest) -> bool:
    """Whether the head is the embeddings: then what is kept of the output is a norm."""
    return manifest.output.tensor_bytes * _SMALL < manifest.embeddings.tensor_bytes


def _layer(size: int, keeps: Kept, kv_type: KvType, share: float) -> Layer:
    return Layer(
        size,
        kv=int(keeps.token * KV_BITS[kv_type] / 16),
        window=keeps.window,
        state=keeps.sequence,
        read=None if share == 1 else int(size * share),
    )


def _share(header: Header, layer: int) -> float:
    """Of a layer's weights, what one token needs: of many experts it is sent to a few."""
    experts, used = header.number("expert_count"), header.number("expert_used_count")
    if not 0 < used < experts or layer < header.number("leading_dense_block_count"):
        return 1
    return 1 - _EXPERTS * (1 - used / experts)


def _is_tied(cutting: Cutting) -> bool:
    """Whether a last stage that is not the first takes the embeddings all the same."""
    for start in range(cutting.total - 1, 0, -1):
        if not cutting.obstacle(start, cutting.total):
            return cutting.needs(start, cutting.total).embeddings
    return False


def law(compute: float, delays: Sequence[float]) -> float:
    """Seconds of one token: what all stages compute, and the one-way delay of each link of the
    ring. One stage has no link.
    """
    return compute + sum(delays) + HOP * len(delays)


def rooms(context: int | None, slots: int | None, trained: int) -> Iterator[tuple[int, int]]:
    """The contexts and slots to try, the best first: what is asked for is kept."""
    wanted = context or min(trained or MOST_CONTEXT, MOST_CONTEXT)
    for count in [slots] if slots else range(MOST_SLOTS, 0, -1):
        yield wanted, count
    while context is None and wanted // 2 >= LEAST_CONTEXT:
        wanted //= 2
        yield wanted, slots or 1
