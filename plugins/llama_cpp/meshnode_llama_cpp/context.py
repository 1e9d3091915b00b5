"""What llama.cpp computes with: the KV cache of all sequences, and the rows of one call.

Each sequence has a cache of its own (`kv_unified` is false). In one cache for all, the cells of a
sequence lie where others left room, and sums over them are taken in the order of the cells:
measured, 70 of 240 greedy answers in company were not those alone, and none with a cache for each.
Attention then also passes over nobody else's cells. The price: a prefix is copied, cells and all,
and sequences share one graph only where their numbers follow one another.

Arrays are made once and filled by slices: a Python list of the vocabulary is never made.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshnode_llama_cpp.library import L, complaint
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prefixes import rules_of
from p2p_mesh.core.records import KvType
from p2p_mesh.errors import ModelError

OUTPUTS = 64
"""Rows of one call that can be answered: room for guesses, and for a prompt that is scored."""

_AUTO, _DISABLED = -1, 0  # LLAMA_FLASH_ATTN_TYPE_*
_TYPES: dict[KvType, int] = {"f16": 1, "q8_0": 8, "q4_0": 2}  # GGML_TYPE_*


@dataclass(frozen=True, slots=True)
class Plan:
    """What a context is made for. Tokens, sequences, rows of one call."""

    context: int
    slots: int
    threads: int
    rows: int
    kv_type: KvType = "f16"
    is_exact: bool = False
    """Sums are taken in the order of positions, always: a sliding window keeps all its cells."""
    flash: bool = True
    """Flash attention, where device and model allow it."""


class Rows:
    """The rows of one call: a token, where it stands, whose it is, and whether it is answered."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._tokens: Any = (ctypes.c_int32 * most)()
        self._positions = (ctypes.c_int32 * most)()
        self._owners = (ctypes.c_int32 * most)()
        self._outputs: Any = (ctypes.c_int8 * most)()
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

    @property
    def owners(self) -> list[int]:
        """The slot of each row."""
        return list(self._owners[: self.batch.n_tokens])

    def add(self, slot: int, position: int, tokens: list[int], *, outputs: int) -> int:
        """Rows of one sequence, of which the last `outputs` are answered; returns the first of
        those. Slots come in rising order: what follows one another shares a graph.
        """
        start, count = self.batch.n_tokens, len(tokens)
        end = start + count
        self._tokens[start:end] = tokens
        self._positions[start:end] = list(range(position, position + count))
        self._owners[start:end] = [slot] * count
        self._outputs[start:end] = [0] * (count - outputs) + [1] * outputs
        self.batch.n_tokens = end
        return int(end - outputs)


class Context:
    """The KV cache of a model and the computation over it."""

    takes_forgetful = False
    """Whether a model will do that keeps nothing of what it read, as diffusion models."""

    def __init__(self, model: Model, plan: Plan) -> None:
        params = L.llama_context_default_params()
        params.n_ctx = plan.context * plan.slots
        params.n_batch = params.n_ubatch = plan.rows
        params.n_seq_max = plan.slots
        params.n_outputs_max = min(plan.rows, max(plan.slots, OUTPUTS))
        params.n_threads = params.n_threads_batch = plan.threads
        params.kv_unified = False
        params.swa_full = plan.is_exact
        params.type_k = params.type_v = _TYPES[plan.kv_type]
        params.flash_attn_type = _AUTO if plan.flash else _DISABLED
        params.no_perf = True
        self.outputs: int = params.n_outputs_max
        self._adapt(params)
        self.handle = L.llama_init_from_model(model.handle, params)
        self._memory = L.llama_get_memory(self.handle) if self.handle else None
        if not self.handle:
            raise ModelError(
                f"llama.cpp makes no context of {plan.context} x {plan.slots} for {model.name}: "
                f"{complaint()}"
            )
        if not self._memory and not self.takes_forgetful:
            raise ModelError(f"{model.name} has no memory of what it read: it cannot write")
        self.rows = Rows(plan.rows)
        self.rules = rules_of(
            is_recurrent=model.is_recurrent,
            window=0 if plan.is_exact else model.window,
            rows=plan.rows,
            context=plan.context,
        )
        self.vocabulary = model.token_count
        self._row_type = ctypes.c_float * self.vocabulary
        self._warm(max(0, model.begin))

    @property
    def remembers(self) -> bool:
        """Whether it keeps anything of what it read."""
        return bool(self._memory)

    def _adapt(self, params: Any) -> None:
        """What a kind of context has otherwise (llama_context_params)."""

    def decode(self) -> None:
        """Computes the rows. RuntimeError ends the process: nothing here is known to be whole."""
        status = L.llama_decode(self.handle, self.rows.batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        L.llama_synchronize(self.handle)

    def logits(self, row: int) -> NDArray[np.float32]:
        """Those of a row that is answered: llama.cpp's own buffer, good until the next call."""
        found = L.llama_get_logits_ith(self.handle, row)
        data: Any = self._row_type.from_address(ctypes.addressof(found.contents))
        return np.frombuffer(data, np.dtype(np.float32))

    def clear(self) -> None:
        """Frees what all sequences hold."""
        L.llama_memory_clear(self._memory, True)

    def forget(self, slot: int) -> None:
        """Frees what a sequence holds."""
        L.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def trim(self, slot: int, position: int) -> None:
        """Gives up what a sequence holds from a position on. RuntimeError where the model's
        memory cannot (`rules`).
        """
        if not L.llama_memory_seq_rm(self._memory, slot, position, -1):
            raise RuntimeError(f"sequence {slot} cannot be cut back to {position}")

    def copy(self, source: int, slot: int) -> None:
        """Gives a sequence what another one holds."""
        self.forget(slot)
        L.llama_memory_seq_cp(self._memory, source, slot, -1, -1)

    def state_size(self, slot: int) -> int:
        """Bytes that `save` gives."""
        return int(L.llama_state_seq_get_size(self.handle, slot))

    def save(self, slot: int) -> bytes:
        """All that a sequence holds."""
        data = ctypes.create_string_buffer(self.state_size(slot))
        target = ctypes.cast(data, ctypes.POINTER(ctypes.c_uint8))
        written = L.llama_state_seq_get_data(self.handle, target, len(data), slot)
        return bytes(memoryview(data)[:written])

    def restore(self, slot: int, state: bytes) -> None:
        """Gives a sequence what `save` had from one."""
        self.forget(slot)
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not L.llama_state_seq_set_data(self.handle, data, len(state), slot):
            raise RuntimeError(f"a state of {len(state)} bytes was not taken")

    def drop(self, state: bytes) -> None:
        """Nobody will want what `save` gave: nothing is kept here."""

    def _warm(self, token: int) -> None:
        """A first token: brings the weights in, and shows here what the model cannot do."""
        self.rows.clear()
        self.rows.add(0, 0, [token], outputs=1)
        self.decode()
        self.clear()
