"""A stage's part of a call: rows in, rows or logits out, with a KV cache of its layers alone.

It is a context of llama.cpp's as a whole model has one. What differs is the two ends: a later stage
is fed activations, as embeddings or by replacing what its graph has computed (graph.py), and all
but the last give the output of their last layer instead of logits.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from meshnode_skippy.graph import Floats, Graph, Numbers, shares
from meshnode_skippy.wiring import Wiring
from p2p_mesh.errors import RemoteError

_FOUR_POSITIONS = {8, 24, 40}
"""LLAMA_ROPE_TYPE_MROPE, _VISION, _IMROPE: time, height, width, and one that is not used."""


class StageContext(Context):
    """Layers of a model, and the cache of what they read."""

    takes_forgetful = True

    def __init__(self, model: Model, plan: Plan, wiring: Wiring) -> None:
        """Raises ModelError where the graph of the file has not the nodes that it must have."""
        self._wiring, self._plan, self._name = wiring, plan, model.name
        self._graph = Graph(wiring)
        self._is_fed_rows = wiring.entry == "rows"
        # Behind the last block of its file only those rows are computed that are answered.
        self._marks = wiring.exit_block == wiring.blocks - 1
        self._embedding = L.llama_model_n_embd(model.handle)
        room = L.llama_model_n_embd_inp(model.handle) if self._is_fed_rows else 0
        self._fed = np.zeros((plan.rows, room), np.float32)
        turns = self._is_fed_rows and L.llama_model_rope_type(model.handle) in _FOUR_POSITIONS
        self._positions = np.zeros((4 if turns else 1) * plan.rows, np.int32)
        super().__init__(model, plan)

    @property
    def width(self) -> int:
        """Numbers of a row that leaves; 0 in the last stage."""
        return self._graph.width

    def run(
        self,
        slots: Numbers,
        positions: Numbers,
        tokens: Numbers,
        outputs: NDArray[np.int8],
        given: Floats | None,
    ) -> Floats | None:
        """Computes a call, whose sequences rise and stand together. `outputs`: which rows the last
        stage answers. Returns what leaves, good until the next call; None in the last stage.

        Raises RemoteError for activations of another shape; RuntimeError ends the process: nothing
        here is known to be whole.
        """
        count = len(slots)
        self._feed(given, count)
        self._fill(slots, positions, tokens, outputs)
        # Without a memory, all sequences are computed together.
        self._graph.begin(count, shares(slots) if self._memory else None, given)
        self.decode()
        return self._graph.end(count)

    def _adapt(self, params: Any) -> None:
        if self._marks:
            params.n_outputs_max = self._plan.rows
        if self._wiring.entry == "inject" or not self._wiring.is_last:
            self._graph.attach(params)

    def _feed(self, given: Floats | None, count: int) -> None:
        """Checks what a stage is given, and makes embeddings of it."""
        width = self._embedding if self._is_fed_rows else self._graph.width_given
        if not width:
            return
        shape = None if given is None else given.shape
        if given is None or shape != (count, width) or given.dtype != np.float32:
            raise RemoteError(f"activations are {shape}, and should be {(count, width)}")
        if self._is_fed_rows:
            # Behind them stand zeros: some families take more than the embedding.
            np.multiply(given, np.float32(self._wiring.scale), out=self._fed[:count, :width])

    def _fill(
        self, slots: Numbers, positions: Numbers, tokens: Numbers, outputs: NDArray[np.int8]
    ) -> None:
        count = len(slots)
        self._owners[:count] = slots
        parts = len(self._positions) // self._plan.rows
        for part in range(min(parts, 3)):  # a fourth one is zero
            self._positions[part * count : (part + 1) * count] = positions
        self._positions[3 * count : parts * count] = 0
        if not self._is_fed_rows:
            knows = self._wiring.entry == "tokens" or self._wiring.needs_tokens
            self._tokens[:count] = tokens if knows else 0
        self._outputs[:count] = outputs if self._wiring.is_last else self._marks
        self.rows.batch.n_tokens = count

    def _lay(self) -> None:
        """Gives the batch our arrays, and us the batch's."""
        batch, rows = self.rows.batch, (self.rows.most,)
        kinds = dict(L.llama_batch._fields_)
        self._owners = np.ctypeslib.as_array(batch.seq_id[0], rows)
        self._outputs = np.ctypeslib.as_array(batch.logits, rows)
        batch.pos = ctypes.cast(self._positions.ctypes.data, kinds["pos"])
        if self._is_fed_rows:
            batch.token = None
            batch.embd = ctypes.cast(self._fed.ctypes.data, kinds["embd"])
        else:
            self._tokens = np.ctypeslib.as_array(batch.token, rows)

    def _warm(self, token: int) -> None:
        """A first row: brings the weights in, and shows what the graph computes."""
        self._lay()
        first = np.zeros(1, np.int32)
        self._fill(first, first, np.full(1, token, np.int32), np.ones(1, np.int8))
        self.decode()
        self._graph.study(self._name, self._plan.rows)
        self.clear()
