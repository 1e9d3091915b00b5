"""Which experts a model chooses for a text: a program of its own, so that llama.cpp's threads and
memory stay out of the bench.

    routed.py MODEL USED FILE < TOKENS

TOKENS is a JSON list, USED how many experts a token goes through. FILE becomes a numpy array: the
experts for each token and each layer. The
tokens are read one by one, as they are written.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors, head, watcher

NAME = b"ffn_moe_topk-"
"""Of the node that holds a layer's choice; the layer's number follows."""
_BOOKED = 64
"""Rows of a call, more than are ever fed."""


class Choices(Context):
    """A context that notes what the routers choose, for calls of one row."""

    def __init__(self, model: Model, plan: Plan, used: int) -> None:
        self._tensors, self._used = Tensors(), used
        self.chosen: dict[int, list[int]] = {}
        """The experts of each layer, for the last row."""
        watch, narrow = watcher(self._tensors.name_offset, self._asks, self._tell)
        narrow(frozenset([head(NAME)]))
        self._callback = L.ggml_backend_sched_eval_callback(watch)
        super().__init__(model, plan)

    def _adapt(self, params: Any) -> None:
        params.cb_eval = self._callback

    def _asks(self, tensor: int) -> bool:
        return self._tensors.name(tensor).startswith(NAME)

    def _tell(self, tensor: int) -> bool:
        found = (ctypes.c_int32 * self._used)()
        self._tensors.read(tensor, ctypes.addressof(found), 0, ctypes.sizeof(found))
        self.chosen[int(self._tensors.name(tensor).removeprefix(NAME))] = list(found)
        return True


def trace(path: Path, tokens: list[int], used: int) -> Any:
    """The experts for each token and each layer."""
    model = Model(str(path), name=path.stem, progress=lambda _: None)
    context = Choices(model, Plan(len(tokens), 1, 1, _BOOKED), used)
    found = []
    for place, token in enumerate(tokens):
        context.rows.clear()
        context.rows.add(0, place, [token], outputs=1)
        context.decode()
        found.append([context.chosen[layer] for layer in sorted(context.chosen)])
    return np.array(found, np.int16)


def main() -> None:
    path, used, target = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    start()
    np.save(target, trace(path, json.load(sys.stdin), used))


if __name__ == "__main__":
    main()
