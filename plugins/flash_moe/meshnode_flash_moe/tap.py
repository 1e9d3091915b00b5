"""Hears from llama.cpp's graph through which experts each row goes, as soon as the router has said
it, and lets the graph go on when they are in memory.

Behind the last layer that all rows of a call need, those go on that are answered: maybe none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.nodes import WORD, Tensors, head, watcher
from numpy.typing import NDArray

from p2p_mesh.errors import ModelError

_NODE = re.compile(rb"ffn_moe_topk-(\d+)")
_TELLING = 2 * WORD
"""Where a name says more than `ffn_moe_`, as many nodes do."""

Need = Callable[[int, NDArray[np.int32]], None]
"""Told the place of a layer and the experts of each row; returns when they are in memory."""


class Tap:
    """For one context. `places`: of each layer that has experts."""

    def __init__(self, places: Mapping[int, int], *, experts: int, need: Need) -> None:
        self._places, self._experts, self._need = places, experts, need
        self._tensors = Tensors()
        self._names: dict[bytes, int] = {}
        self._heard: set[int] = set()
        self._failure: Exception | None = None
        offset = self._tensors.name_offset + _TELLING
        watch, self._narrow = watcher(offset, self._ask, self._tell)
        self._narrow(frozenset({head(b"topk")}))
        self._callback = L.ggml_backend_sched_eval_callback(watch)

    def attach(self, params: Any) -> None:
        """To a context that is not made yet."""
        params.cb_eval = self._callback

    def check(self, name: str) -> None:
        """After the first call. Raises ModelError where layers have experts of which no router
        was heard: they would never be read.
        """
        self.end()
        silent = sorted(self._places.keys() - self._heard)
        if silent:
            raise ModelError(
                f"{name} does not say which experts of layer {silent[0]} it goes through: "
                f"they cannot be read from the disk as they are wanted"
            )

    def stop(self) -> None:
        """From now on the graph is computed without a word: all experts are in memory."""
        self._narrow(frozenset())

    def end(self) -> None:
        """After each call: raises what went wrong in it, an exception cannot pass llama.cpp."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    # What llama.cpp calls

    def _ask(self, tensor: int) -> bool:
        return self._layer(self._tensors.name(tensor)) in self._places

    def _layer(self, name: bytes) -> int:
        found = self._names.get(name)
        if found is None:
            match = _NODE.fullmatch(name)
            found = self._names[name] = int(match[1]) if match else -1
        return found

    def _tell(self, tensor: int) -> bool:
        layer = self._layer(self._tensors.name(tensor))
        try:
            self._need(self._places[layer], self._ids(tensor))
        except Exception as error:  # noqa: BLE001  it is raised by `end`: none can pass llama.cpp
            self._failure = error
        self._heard.add(layer)
        return self._failure is None

    def _ids(self, tensor: int) -> NDArray[np.int32]:
        ids = self._tensors.numbers(tensor)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._experts:
            raise ValueError(f"the router chose an expert beyond the {self._experts} there are")
        return ids
