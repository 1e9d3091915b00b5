"""A whole model whose routers do not see some experts: what a shard without these must equal."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from certification.players import AnyContext
from meshnode_llama_cpp.context import Plan
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors

# What is chosen by and weighed with, wherever families compute it: nothing is ever above -inf, and
# the shares made of it are zero.
_SEEN = re.compile(rb"ffn_moe_(?:logits|logits_biased|probs_biased)-(\d+)")


class MaskedContext(AnyContext):
    """`absent`: experts that cannot be chosen, by layer."""

    def __init__(
        self, model: Model, plan: Plan, absent: Mapping[int, Sequence[int]], experts: int
    ) -> None:
        self._absent = {layer: list(ones) for layer, ones in absent.items()}
        self._experts = experts
        self._tensors = Tensors()
        self._callback = L.ggml_backend_sched_eval_callback(self._watch)
        self.masked: set[int] = set()
        """Layers in which it was done."""
        super().__init__(model, plan)

    def _adapt(self, params: Any) -> None:
        params.cb_eval = self._callback

    def _watch(self, tensor: int, asks: bool, _data: object) -> bool:
        found = _SEEN.fullmatch(self._tensors.name(tensor))
        layer = int(found[1]) if found else -1
        if asks or layer not in self._absent:
            return layer in self._absent
        self._mask(tensor, layer)
        return True

    def _mask(self, tensor: int, layer: int) -> None:
        size = self._tensors.size(tensor)
        rows = np.empty((size // (4 * self._experts), self._experts), np.float32)
        at = ctypes.c_void_p(rows.ctypes.data)
        self._tensors.read(tensor, at, 0, size)
        rows[:, self._absent[layer]] = -np.inf
        self._tensors.write(tensor, at, 0, size)
        self.masked.add(layer)
