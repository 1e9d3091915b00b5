"""What the file of an expert shard is made of: the whole trunk of a model, and some of the experts
of each layer.

llama.cpp goes by the number of experts in the header and by their place in the tensors, so a model
with fewer of them is a model like any other, whose router knows no others. It is then what the
whole model would be if its router could not choose the rest. Models in which more than that hangs
on the number or the names of experts are refused, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p2p_mesh.core.experts.assignment import fewest
from p2p_mesh.core.experts.known import MODEL, PREFIX, Known, keys
from p2p_mesh.core.experts.layout import Layout, Sliced, layout
from p2p_mesh.core.gguf import Header, Tensor, Value
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Shard
from p2p_mesh.errors import ModelError

_SPLIT = "split."
"""Keys of a model in several files; a shard is one."""

_UNNORMED = 128
"""A llama4 with so many experts is taken for Maverick, whose queries and keys are not normed."""
_UNUSED = frozenset({"refact"})
"""Families whose graph goes through none of the experts that their files may hold."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A tensor of a shard, from the tensor of that name in the model."""

    name: str
    shape: tuple[int, ...]
    """Innermost first, as GGUF says it."""
    type: int
    size: int
    pieces: tuple[tuple[int, int], ...]
    """Where its bytes are: from the start of the model's tensor, and how many; rising."""


@dataclass(frozen=True, slots=True)
class ShardRecipe:
    metadata: Mapping[str, Value]
    """Keys that are set: text, a number of 32 bits without sign or a float of 32 bits, or an array
    of the former. All others are the model's own,
    """
    left_out: tuple[str, ...]
    """but for these."""
    tensors: tuple[Cut, ...]
    """In the model's order."""

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(one.size for one in self.tensors)

    def ranges(self, header: Header) -> tuple[tuple[int, int], ...]:
        """What is needed of the tensors in a file with this header, which may be one of several
        that the model is in: offsets and sizes, rising, as few as can be.
        """
        held = {one.name: one.offset for one in header.tensors}
        return _merged(
            (held[one.name] + start, size)
            for one in self.tensors
            if one.name in held
            for start, size in one.pieces
        )


def obstacle(header: Header, keep: int | None = None) -> str:
    """Why no shards (with `keep` experts of each layer) are made of a model; empty: they can be."""
    family = header.architecture
    try:
        found = layout(header)
    except ModelError as error:
        return f"models of the family {family!r} are not run in expert shards: {error}"
    if found is None:
        return f"it is no mixture of experts, but a {family!r}"
    if MODEL in header.metadata:
        return "it is an expert shard itself: shards are made of the whole model"
    if why := _refusal(header, found, keep):
        return f"models of the family {family!r} are not run in expert shards: {why}"
    return ""


def _refusal(header: Header, found: Layout, keep: int | None) -> str:
    if header.architecture in _UNUSED:
        return "llama.cpp computes none of its experts"
    tables = any(one.name.endswith("ffn_gate_tid2eid.weight") for one in header.tensors)
    if tables or header.number("hash_layer_count") > 0:
        return "its first layers choose experts by tables of tokens, which name them all"
    is_other = keep != found.experts and _UNNORMED in (found.experts, keep)
    if header.architecture == "llama4" and is_other:
        return f"with {_UNNORMED} experts its graph is another than with any other number"
    return ""


def shard_recipe(
    header: Header,
    of: Layout,
    experts: Sequence[Sequence[int]],
    *,
    model: Digest,
    mass: float,
    part: int = 0,
    parts: int = 1,
) -> ShardRecipe:
    """The shard with these experts of each layer of the layout. Raises ModelError."""
    keep = len(experts[0]) if experts else 0
    if why := obstacle(header, keep):
        raise ModelError(why)
    _check(of, experts, keep)
    known = Known(
        Shard(model=model, mass=mass), of.experts, tuple(map(tuple, experts)), part, parts
    )
    chosen = {
        one.name: (one, own)
        for layer, own in zip(of.layers, experts, strict=True)
        for one in (*layer.weights, *layer.small)
    }
    return ShardRecipe(
        metadata={f"{header.architecture}.expert_count": keep, **keys(known)},
        left_out=tuple(one for one in header.metadata if one.startswith((_SPLIT, PREFIX))),
        tensors=tuple(
            _cut(one, *chosen[one.name]) if one.name in chosen else uncut(one)
            for one in header.tensors
        ),
    )


def _check(of: Layout, experts: Sequence[Sequence[int]], keep: int) -> None:
    if len(experts) != len(of.layers) or any(len(own) != keep for own in experts):
        raise ModelError(f"a shard has equally many experts of each of {len(of.layers)} layers")
    if keep % of.groups or not fewest(of) <= keep <= of.experts:
        raise ModelError(f"a shard cannot have {keep} of {of.experts} experts")
    for own in experts:
        if sorted(set(own)) != list(own) or not 0 <= own[0] <= own[-1] < of.experts:
            raise ModelError(f"the experts of a shard rise, from 0 to {of.experts - 1}")
        width = of.experts // of.groups
        if len({sum(one // width == group for one in own) for group in range(of.groups)}) > 1:
            raise ModelError(f"a shard has equally many experts of each of {of.groups} groups")


def uncut(tensor: Tensor) -> Cut:
    """All of it."""
    return Cut(tensor.name, tensor.shape, tensor.type, tensor.size, ((0, tensor.size),))


def _cut(tensor: Tensor, sliced: Sliced, experts: Sequence[int]) -> Cut:
    size = sliced.size
    return Cut(
        tensor.name,
        (*tensor.shape[:-1], len(experts)),
        tensor.type,
        size * len(experts),
        _merged((one * size, size) for one in experts),
    )


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Rising, and those that touch as one."""
    merged: list[tuple[int, int]] = []
    for start, size in sorted(ranges):
        if merged and start <= sum(merged[-1]):
            first = merged[-1][0]
            merged[-1] = first, max(sum(merged[-1]), start + size) - first
        else:
            merged.append((start, size))
    return tuple(merged)
