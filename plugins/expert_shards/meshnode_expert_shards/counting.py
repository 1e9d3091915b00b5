"""How often the router of each layer chose each expert, and with what share of a token's weights,
while llama.cpp computes: taken from its graph, node by node (meshnode_llama_cpp.nodes).

Two nodes of a layer tell it: the numbers of the chosen experts, and what their results are
multiplied by. Families scale, normalise and soften those weights differently, so a first graph is
only read (`study`), and the last of the names that it has is the one that counts. A call is
computed as one graph or as several: sums do not mind.

An exception cannot pass through llama.cpp: what goes wrong is kept, and raised afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors, head, watcher
from numpy.typing import NDArray

from p2p_mesh.core.experts.ranking import LayerRanking
from p2p_mesh.errors import ModelError

CHOSEN = b"ffn_moe_topk"
WEIGHTS = (b"ffn_moe_weights", b"ffn_moe_weights_softmax", b"ffn_moe_weights_norm",
           b"ffn_moe_weights_scaled")  # fmt: skip
"""A graph computes them in this order, each of the one before."""

NODE = re.compile(rb"(ffn_moe_(?:topk|weights(?:_softmax|_norm|_scaled)?))-(\d{1,5})")
"""What the nodes are called that tell something, and of which layer they are."""
_NUMBER = 4
"""Bytes of a chosen expert's number, and of a weight."""

Chosen = Callable[[int, Sequence[int]], None]


class Counting:
    """What the routers of a model chose since the last `study`."""

    def __init__(self, experts: int, chosen: Chosen = lambda layer, experts: None) -> None:
        self._experts, self._tell_chosen = experts, chosen
        self._tensors = Tensors()
        self._seen: dict[bytes, int] | None = {}
        self._chosen: dict[bytes, int] = {}
        """Layers, by the names of the nodes,"""
        self._weights: dict[bytes, int] = {}
        self._now: dict[int, NDArray[np.int32]] = {}
        """and what was chosen in them, until the weights come."""
        self._failure = ""
        self._counts: dict[int, NDArray[np.int64]] = {}
        """By layer, how many tokens chose each expert,"""
        self._masses: dict[int, NDArray[np.float64]] = {}
        """and the sum of its shares of their weights."""
        watch, self._narrow = watcher(self._tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)

    def attach(self, params: Any) -> None:
        """To a context that is not made yet."""
        params.cb_eval = self._callback

    def study(self, name: str, family: str) -> None:
        """After a first call: finds the nodes. ModelError where the graph has none of them."""
        found = _layers(self._seen or {})
        if not found:
            raise ModelError(
                f"{name} does not show what its routers choose: the family {family} computes no "
                f"nodes that are named {CHOSEN.decode()} and {WEIGHTS[0].decode()}"
            )
        self._chosen = {b"%s-%d" % (CHOSEN, layer): layer for layer in found}
        self._weights = {b"%s-%d" % (_last(names), layer): layer for layer, names in found.items()}
        self._counts = {layer: np.zeros(self._experts, np.int64) for layer in found}
        self._masses = {layer: np.zeros(self._experts, np.float64) for layer in found}
        self._seen = None
        self._narrow(frozenset({head(CHOSEN)}))

    def rankings(self) -> tuple[LayerRanking, ...]:
        """What was counted, by rising layers."""
        return tuple(
            LayerRanking(
                layer=layer,
                counts=tuple(self._counts[layer].tolist()),
                masses=tuple(self._masses[layer].tolist()),
            )
            for layer in sorted(self._counts)
        )

    def check(self) -> None:
        """After a call. RuntimeError where a node was another than it should be."""
        if self._failure or self._now:
            raise RuntimeError(self._failure or f"layers {sorted(self._now)} gave no weights")

    # What llama.cpp calls

    def _ask(self, tensor: int) -> bool:
        name = self._tensors.name(tensor)
        if self._seen is None:
            return name in self._chosen or name in self._weights
        self._seen[name] = tensor
        return False

    def _tell(self, tensor: int) -> bool:
        """Answers whether to go on computing."""
        name = self._tensors.name(tensor)
        if (layer := self._chosen.get(name)) is not None:
            self._choose(layer, tensor)
        else:
            self._weigh(self._weights[name], tensor)
        return not self._failure

    def _choose(self, layer: int, tensor: int) -> None:
        try:
            chosen = self._tensors.numbers(tensor)
        except ValueError as error:
            self._failure = f"layer {layer} chose experts in another form: {error}"
            return
        if chosen.min() < 0 or chosen.max() >= self._experts:
            self._failure = f"layer {layer} chose an expert that is none: {chosen.max()}"
            return
        self._now[layer] = chosen
        self._tell_chosen(layer, np.unique(chosen).tolist())

    def _weigh(self, layer: int, tensor: int) -> None:
        chosen, weights = self._now.pop(layer, None), self._read(tensor, np.float32)
        if chosen is None or weights.size != chosen.size:
            self._failure = f"layer {layer} gave {weights.size} weights of other experts"
            return
        numbers, shares = chosen.ravel(), shares_of(weights.reshape(chosen.shape)).ravel()
        self._counts[layer] += np.bincount(numbers, minlength=self._experts)
        self._masses[layer] += np.bincount(numbers, shares, self._experts)

    def _read(self, tensor: int, kind: Any) -> NDArray[Any]:
        size = int(self._tensors.size(tensor))
        data = np.empty(size // _NUMBER, kind)
        self._tensors.read(tensor, data.ctypes.data, 0, size)
        return data


def shares_of(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each row, so that every token counts as much. One without any weight is shared evenly."""
    exact = np.maximum(np.nan_to_num(weights.astype(np.float64)), 0)
    totals = exact.sum(1, keepdims=True)
    even = np.full_like(exact, 1 / exact.shape[1])
    shares: NDArray[np.float64] = np.divide(exact, totals, out=even, where=totals > 0)
    return shares


def _layers(names: Iterable[bytes]) -> dict[int, set[bytes]]:
    """The nodes that tell something, by their layers."""
    found: dict[int, set[bytes]] = {}
    for name in names:
        if match := NODE.fullmatch(name):
            found.setdefault(int(match[2]), set()).add(match[1])
    return {layer: kinds for layer, kinds in found.items() if {CHOSEN, WEIGHTS[0]} <= kinds}


def _last(kinds: set[bytes]) -> bytes:
    return next(one for one in reversed(WEIGHTS) if one in kinds)


class CountingContext(Context):
    """Computes as any context does, and counts. All rows of a call are answered: behind the last
    layer's attention, llama.cpp computes no others.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        *,
        experts: int,
        family: str,
        chosen: Chosen = lambda layer, experts: None,
    ) -> None:
        """`chosen`: told of a layer's experts when its router has chosen them, before they compute.
        Raises ModelError where its graph does not show what is chosen.
        """
        self.counting = Counting(experts, chosen)
        self._named, self._plan = (model.name, family), plan
        super().__init__(model, plan)

    def decode(self) -> None:
        super().decode()
        self.counting.check()

    def _adapt(self, params: Any) -> None:
        params.n_outputs_max = self.outputs = self._plan.rows
        self.counting.attach(params)

    def _warm(self, token: int) -> None:
        super()._warm(token)
        self.counting.study(*self._named)
