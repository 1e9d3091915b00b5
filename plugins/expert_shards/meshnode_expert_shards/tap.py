"""Hears from llama.cpp's graph what the routers are given, in those calls in which it is turned on.

A router is multiplied by what it is given: the node that does it has the weights' name as its first
source, and what is wanted as its second. A first graph is only read (`study`): its nodes are found,
and what was chosen there says by which rule routers choose. Of a call that is computed as several
graphs one is listened to.

An exception cannot pass through llama.cpp, and a call is never given up for this: what is in
another form is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.nodes import Tensors, head, watcher
from numpy.typing import NDArray

from meshnode_expert_shards.counting import CHOSEN, NODE, shares_of
from meshnode_expert_shards.routers import Floats, Router, Routers, Rule, Shares, rule_of
from meshnode_expert_shards.switch import Switch

SAMPLE = 64
"""Rows of a prompt that are weighed, the last of them: they say most of what is to come."""

_ROUTER = re.compile(rb"blk\.(\d{1,5})\.ffn_gate_inp\.weight")
_OURS = b"ffn_"
"""What the names of such nodes begin with. Nodes without a name have another in each graph."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One of those that a call is computed as."""

    number: int
    rows: int


class Tap:
    """For one context."""

    def __init__(self, routers: Routers) -> None:
        self._routers = routers
        self._tensors = Tensors()
        self._is_studying = True
        self._names: dict[bytes, int] = {}
        """Layers, by the nodes that multiply their routers."""
        self._chosen: dict[int, NDArray[np.int32]] = {}
        self._weights: dict[int, Floats] = {}
        self._graph = Graph(0, 1)
        self._come: Counter[int] = Counter()
        self._given: dict[int, Floats] = {}
        watch, self._narrow = watcher(self._tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)
        self._switch = Switch(self._callback)

    def attach(self, params: Any) -> None:
        """To a context that is not made yet."""
        self._switch.attach(params)

    def find(self, handle: Any) -> bool:
        """Once it is made, before anything is computed: whether it can be turned off."""
        return self._switch.find(handle)

    def study(self) -> Rule | None:
        """After a call of one row: the rule by which routers choose; None: it is not known. From
        now on it is turned off.
        """
        self._switch.turn(on=False)
        self._is_studying = False
        self._narrow(frozenset({head(_OURS)}))
        heard = self._given.keys() & self._chosen.keys() & self._weights.keys()
        return rule_of({
            layer: (self._router(layer), self._given[layer], found)
            for layer in heard
            if (found := self._shares(layer)) is not None
        })  # fmt: skip

    def begin(self, graph: Graph) -> None:
        """Before a call of which one graph is to be heard."""
        self._graph = graph
        self._come.clear()
        self._given = {}
        self._switch.turn(on=True)

    def end(self) -> Mapping[int, Floats]:
        """After it: what the routers were given, by layer: the last SAMPLE rows, or all."""
        self._switch.turn(on=False)
        return self._given

    def _router(self, layer: int) -> Router:
        return self._routers.whole[layer].of(self._routers.own[layer])

    def _shares(self, layer: int) -> Shares | None:
        """What was chosen of a shard's own experts, in the first graph."""
        chosen, weights = self._chosen[layer], self._weights[layer]
        count = len(self._routers.own[layer])
        if not chosen.size or weights.size != chosen.size:
            return None
        if not 0 <= chosen.min() <= chosen.max() < count:
            return None
        found = np.zeros((len(chosen), count))
        np.put_along_axis(found, chosen, shares_of(weights.reshape(chosen.shape)), 1)
        return found

    # What llama.cpp calls

    def _ask(self, tensor: int) -> bool:
        name = self._tensors.name(tensor)
        return self._finds(name, tensor) if self._is_studying else name in self._names

    def _finds(self, name: bytes, tensor: int) -> bool:
        sources = self._tensors.sources(tensor)
        match = _ROUTER.fullmatch(self._tensors.name(sources[0])) if len(sources) == 2 else None
        if match is not None and name.startswith(_OURS) and int(match[1]) in self._routers.whole:
            self._names[name] = int(match[1])
            return True
        return NODE.fullmatch(name) is not None

    def _tell(self, tensor: int) -> bool:
        """Always goes on computing."""
        name = self._tensors.name(tensor)
        try:
            if (layer := self._names.get(name)) is not None:
                self._hear(layer, self._tensors.sources(tensor)[1])
            elif match := NODE.fullmatch(name):
                self._learn(match[1], int(match[2]), tensor)
        except ValueError:
            pass  # in another form: the layer is left out
        return True

    def _hear(self, layer: int, given: int) -> None:
        number, self._come[layer] = self._come[layer], self._come[layer] + 1
        if number == self._graph.number and self._tensors.count(given) == self._graph.rows:
            self._given[layer] = self._tensors.last_rows(given, SAMPLE)

    def _learn(self, kind: bytes, layer: int, tensor: int) -> None:
        if kind == CHOSEN:
            self._chosen[layer] = self._tensors.numbers(tensor)
        else:  # the last of them counts
            size = int(self._tensors.size(tensor))
            found = self._weights[layer] = np.empty(size // 4, np.float32)
            self._tensors.read(tensor, found.ctypes.data, 0, found.nbytes)
