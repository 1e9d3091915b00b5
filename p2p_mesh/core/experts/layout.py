"""Where the experts of a mixture of experts lie in its file.

llama.cpp stores the experts of a layer in few tensors (`blk.N.ffn_up_exps.weight`), whose outermost
axis is the expert, so that one expert is one range of bytes in each. What counts or weighs experts
beside them (rows of the router, biases, scales) has the expert as its outermost axis as well. A
form that is not one of these is refused: better no layout than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from p2p_mesh.core.gguf import BLOCKS, Header, Tensor
from p2p_mesh.errors import ModelError

MAX_LAYERS = 4096
MAX_EXPERTS = 4096

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)\Z", re.DOTALL)
_WEIGHT = re.compile(r"ffn_(gate|up|down|gate_up)_exps\.weight\Z")
_SMALL = re.compile(
    r"(ffn_gate_inp\.(weight|bias)"
    r"|exp_probs_b(_vl)?(\.bias)?"
    r"|ffn_(gate|up|down|gate_up)_exps\.(bias|scale|input_scale))\Z"
)
_OLD = re.compile(r"ffn_(gate|up|down)\.\d+\.")
_NOT_BY_EXPERT = frozenset({"ffn_norm_exps.weight"})
"""Named after experts, and one for all of them."""


@dataclass(frozen=True, slots=True)
class Sliced:
    """A tensor whose outermost axis is the expert."""

    name: str
    offset: int
    """Of expert 0, in the file that the tensor stands in."""
    size: int
    """Bytes of one expert."""

    def of(self, expert: int) -> tuple[int, int]:
        """Where one expert begins, and how long it is."""
        return self.offset + expert * self.size, self.size


@dataclass(frozen=True, slots=True)
class Layer:
    number: int
    used: int
    """Experts that a token goes through."""
    weights: tuple[Sliced, ...]
    """The experts themselves, in the order of the file."""
    small: tuple[Sliced, ...] = ()
    """What else has a part for each expert: the rows of the router, biases, scales."""

    @property
    def size(self) -> int:
        """Bytes of the weights of one expert."""
        return sum(one.size for one in self.weights)


@dataclass(frozen=True, slots=True)
class Layout:
    """The experts of a model, by layer."""

    experts: int
    """Of each layer."""
    used: int
    """Of them, those that one token goes through; the most of any layer."""
    layers: tuple[Layer, ...]
    """Those that have experts, rising."""
    groups: int = 1
    """In which experts stand, as many in each: the router first chooses among these,"""
    groups_used: int = 1
    """and so many of them."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(layer.number for layer in self.layers)

    @property
    def bytes_per_expert(self) -> int:
        """Of one expert in every layer."""
        return sum(layer.size for layer in self.layers)

    @property
    def expert_bytes(self) -> int:
        """Of the weights of all routed experts."""
        return self.experts * self.bytes_per_expert

    def layer(self, number: int) -> Layer:
        for one in self.layers:
            if one.number == number:
                return one
        raise ModelError(f"its layer {number} has no experts")

    def slices(self, number: int, expert: int) -> tuple[tuple[int, int], ...]:
        """Where the weights of one expert are: offsets and sizes."""
        return tuple(one.of(expert) for one in self.layer(number).weights)


def layout(header: Header) -> Layout | None:
    """None: no mixture of experts. Raises ModelError for a form that is not known.

    Of a model in several files each offset is one in the tensor's own file.
    """
    found = dict(_experts_by_layer(header))
    if not any(weights for weights, _ in found.values()):
        return None
    experts = header.number("expert_count")
    if not 2 <= experts <= MAX_EXPERTS:
        raise ModelError(f"its header claims {experts} experts; there are 2 to {MAX_EXPERTS}")
    used = _used(header, max(found) + 1)
    groups, groups_used = _groups(header, experts)
    layers = tuple(
        Layer(
            number,
            _checked_use(used[number], experts, number),
            tuple(_sliced(one, experts) for one in weights),
            tuple(_sliced(one, experts) for one in small),
        )
        for number, (weights, small) in sorted(found.items())
        if weights
    )
    most = max(layer.used for layer in layers)
    return Layout(experts, most, layers, groups, groups_used)


def _experts_by_layer(header: Header) -> Iterator[tuple[int, tuple[list[Tensor], list[Tensor]]]]:
    """The tensors of experts, and those that have a part for each."""
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for tensor in header.tensors:
        match = _BLOCK.match(tensor.name)
        if match is None:
            continue
        number, name = int(match[1]), match[2]
        if number >= MAX_LAYERS:
            raise ModelError(f"it has a layer {number}; {MAX_LAYERS} is the limit")
        of_layer = found.setdefault(number, ([], []))
        if _WEIGHT.match(name):
            of_layer[0].append(tensor)
        elif _SMALL.match(name):
            of_layer[1].append(tensor)
        elif ("exps" in name and name not in _NOT_BY_EXPERT) or _OLD.match(name):
            raise ModelError(
                f"its experts are in a form that is not known here: {tensor.name[:128]!r}"
            )
    yield from found.items()


def _used(header: Header, layers: int) -> tuple[int, ...]:
    total = max(layers, min(header.number("block_count"), MAX_LAYERS))
    return header.numbers("expert_used_count", total)


def _checked_use(used: int, experts: int, number: int) -> int:
    if not 1 <= used <= experts:
        raise ModelError(f"its header claims that layer {number} uses {used} of {experts} experts")
    return used


def _groups(header: Header, experts: int) -> tuple[int, int]:
    groups = max(1, header.number("expert_group_count"))
    used = header.number("expert_group_used_count") if groups > 1 else 1
    if experts % groups or not 1 <= used <= groups:
        raise ModelError(
            f"its header claims {groups} groups, of which {used} are used, of {experts} experts"
        )
    return groups, used


def _sliced(tensor: Tensor, experts: int) -> Sliced:
    block = BLOCKS.get(tensor.type, (1, 0))[0]
    told = tensor.shape[-1] if tensor.shape else 0
    if told != experts:
        raise ModelError(
            f"its tensor {tensor.name!r} is of {told} experts, and its header says {experts}"
        )
    # Rows are whole blocks: an axis that is the only one is cut between numbers.
    row = tensor.shape[0] if len(tensor.shape) > 1 else 1
    if not tensor.size or row % block:
        raise ModelError(
            f"its tensor {tensor.name!r} of the type {tensor.type} cannot be cut into experts"
        )
    return Sliced(tensor.name, tensor.offset, tensor.size // experts)
