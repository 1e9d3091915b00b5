"""What llama.cpp computes with: the KV memory of all sequences, one call's rows, the samplers.

One unified KV memory holds every sequence, so that a part of one can be copied to another later
(`llama_memory_seq_cp` aborts otherwise). But there the cells of a sequence lie where others left
room, and sums over them are taken in the order of the cells: measured, 70 of 240 greedy answers in
company were not those alone, and none with a memory for each (`exact`).

Arrays are made once and filled by slices: a Python list of the vocabulary is never made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from meshnode_llama_cpp.library import L, complaint
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampling import (
    PENALTY_WINDOW,
    Draw,
    Greedy,
    Link,
    MinP,
    Penalties,
    Temperature,
    TopK,
    TopP,
    chain,
    draw_seed,
    penalises,
)
from p2p_mesh.core.records import Sampling
from p2p_mesh.errors import ModelError


class Rows:
    """The rows of one call: a token, where it stands, whose it is, and whether it is answered."""

    def __init__(self, most: int) -> None:
        self._tokens: Any = (ctypes.c_int32 * most)()
        self._positions = (ctypes.c_int32 * most)()
        self._owners = (ctypes.c_int32 * most)()
        self._outputs = (ctypes.c_int8 * most)()
        first, size = ctypes.addressof(self._owners), ctypes.sizeof(ctypes.c_int32)
        row_owners = [first + size * row for row in range(most)]
        self._owner_lists = (ctypes.c_void_p * most)(*row_owners)
        self._owner_counts = (ctypes.c_int32 * most)(*[1] * most)
        self.batch = L.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._owner_counts),
            ("seq_id", self._owner_lists),
            ("logits", self._outputs),
        ):
            setattr(self.batch, name, ctypes.cast(array, dict(L.llama_batch._fields_)[name]))

    def clear(self) -> None:
        self.batch.n_tokens = 0

    def add(self, slot: int, position: int, tokens: list[int], *, output: bool) -> int:
        """Rows of one sequence; returns the last, which alone can be answered."""
        start, count = self.batch.n_tokens, len(tokens)
        end = start + count
        self._tokens[start:end] = tokens
        self._positions[start:end] = list(range(position, position + count))
        self._owners[start:end] = [slot] * count
        self._outputs[start:end] = [0] * count
        self._outputs[end - 1] = output
        self.batch.n_tokens = end
        return int(end - 1)


class Context:
    """The KV memory of a model and the computation over it."""

    def __init__(
        self,
        model: Model,
        *,
        context: int,
        slots: int,
        threads: int,
        rows: int,
        exact: bool = False,
    ) -> None:
        params = L.llama_context_default_params()
        params.n_ctx = context * slots
        params.n_batch = params.n_ubatch = rows
        params.n_seq_max = params.n_outputs_max = slots
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = not exact
        params.no_perf = True  # and flash_attn_type as it is: on, where device and model allow it
        self.handle = L.llama_init_from_model(model.handle, params)
        self._memory = L.llama_get_memory(self.handle) if self.handle else None
        if not self.handle:
            raise ModelError(
                f"llama.cpp makes no context of {context} x {slots} for {model.name}: {complaint()}"
            )
        if not self._memory:
            raise ModelError(f"{model.name} has no memory of what it read: it cannot write")
        self.rows = Rows(rows)
        self.vocabulary = model.token_count
        self._warm(max(0, model.begin))

    def decode(self) -> None:
        """Computes the rows. RuntimeError ends the process: nothing here is known to be whole."""
        status = L.llama_decode(self.handle, self.rows.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def forget(self, slot: int) -> None:
        """Frees what a sequence holds."""
        L.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def _warm(self, token: int) -> None:
        """A first token: brings the weights in, and shows here what the model cannot do."""
        self.rows.clear()
        self.rows.add(0, 0, [token], output=True)
        self.decode()
        L.llama_synchronize(self.handle)
        L.llama_memory_clear(self._memory, True)


class Sampler:
    """Draws the tokens of one answer. `free` it."""

    def __init__(
        self, context: Context, sampling: Sampling, prompt: Sequence[int], choice: int = 0
    ) -> None:
        self._context = context
        self._seed, self._choice = sampling.seed, choice
        params = L.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = L.llama_sampler_chain_init(params)
        self._draws = False
        for link in chain(sampling):
            self._draws = isinstance(link, Draw)
            L.llama_sampler_chain_add(self._chain, _native(link, context.vocabulary))
        self._last: int = L.llama_sampler_chain_n(self._chain) - 1
        if penalises(sampling):
            for token in prompt[-PENALTY_WINDOW:]:
                L.llama_sampler_accept(self._chain, token)

    def sample(self, row: int, position: int) -> int:
        """The token at that position of the answer, from that row of the last call."""
        if self._draws:
            seed = draw_seed(self._seed, self._choice, position)
            L.llama_sampler_free(L.llama_sampler_chain_remove(self._chain, self._last))
            L.llama_sampler_chain_add(self._chain, L.llama_sampler_init_dist(seed))
        token: int = L.llama_sampler_sample(self._chain, self._context.handle, row)
        return token

    def free(self) -> None:
        L.llama_sampler_free(self._chain)


def _native(link: Link, vocabulary: int) -> Any:
    match link:
        case Penalties(repeat, frequency, presence):
            return L.llama_sampler_init_penalties(
                vocabulary, PENALTY_WINDOW, repeat, frequency, presence
            )
        case TopK(count):
            return L.llama_sampler_init_top_k(count)
        case TopP(share):
            return L.llama_sampler_init_top_p(share, 1)
        case MinP(share):
            return L.llama_sampler_init_min_p(share, 1)
        case Temperature(value):
            return L.llama_sampler_init_temp(value)
        case Greedy():
            return L.llama_sampler_init_greedy()
        case Draw():
            return L.llama_sampler_init_dist(0)
