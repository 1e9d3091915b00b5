from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors, head, watcher

from p2p_mesh.testing.models import write_model


class Watched(Context):
    """Computes, and notes the nodes that it was asked for and told of."""

    model: Model

    def _adapt(self, params: object) -> None:
        self.tensors = Tensors()
        self.asked: list[bytes] = []
        self.told: list[bytes] = []
        watch, self.narrow = watcher(self.tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)
        params.cb_eval = self._callback  # type: ignore[attr-defined]

    def _ask(self, tensor: int) -> bool:
        self.asked.append(self.tensors.name(tensor))
        return self.asked[-1] == b"l_out-0"

    def _tell(self, tensor: int) -> bool:
        self.told.append(self.tensors.name(tensor))
        return True


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    start()
    path: Path = tmp_path_factory.mktemp("nodes") / "model.gguf"
    write_model(path)
    model = Model(str(path), name="model", progress=lambda _: None)
    found = Watched(model, Plan(context=64, slots=1, threads=1, rows=8))
    found.model = model
    return found


def test_every_node_is_asked_for_and_only_the_wanted_are_told(context: Watched) -> None:
    assert {b"l_out-0", b"l_out-1"} <= set(context.asked)
    assert set(context.told) == {b"l_out-0"}


def test_only_names_with_the_wanted_heads_are_asked_for(context: Watched) -> None:
    context.narrow(frozenset({head(b"l_out-0")}))
    context.asked.clear()
    context.rows.clear()
    context.rows.add(0, 0, [1], outputs=1)
    context.decode()
    assert context.asked
    assert all(name.startswith(b"l_ou") for name in context.asked)


def test_a_head_is_a_word_in_the_order_of_the_machine() -> None:
    assert head(b"l_out-0").to_bytes(4, sys.byteorder) == b"l_ou"
    assert ctypes.c_uint32.from_buffer_copy(b"l_ou").value == head(b"l_ou")


class Rows(Watched):
    """Reads what a layer's output is computed from."""

    def _tell(self, tensor: int) -> bool:
        sources = self.tensors.sources(tensor)
        self.counts = [self.tensors.count(one) for one in (tensor, *sources)]
        self.found = [self.tensors.last_rows(one, 9) for one in (tensor, *sources)]
        self.last = [self.tensors.last_rows(one, 2) for one in (tensor, *sources)]
        return True


def test_last_rows_of_a_node_and_of_what_it_is_computed_from_are_read(context: Watched) -> None:
    rows = Rows(context.model, Plan(context=64, slots=1, threads=1, rows=8))
    rows.rows.clear()
    rows.rows.add(0, 0, [1, 2, 3, 4, 5], outputs=1)
    rows.decode()
    assert rows.counts == [5, 5, 5]
    assert {one.shape for one in rows.found} == {(5, rows.found[0].shape[1])}
    for all_of_them, last in zip(rows.found, rows.last, strict=True):
        np.testing.assert_array_equal(last, all_of_them[3:])


def test_node_that_is_not_of_rows_has_none(context: Watched) -> None:
    class Odd(Rows):
        def _ask(self, tensor: int) -> bool:
            return bool(self.tensors.name(tensor) == b"kq_soft_max-0 (permuted)") or (
                b"view" in self.tensors.name(tensor) and not self.refused
            )

        refused: str = ""

        def _tell(self, tensor: int) -> bool:
            try:
                self.tensors.last_rows(tensor, 2)
            except ValueError as error:
                self.refused = str(error)
            return True

    odd = Odd(context.model, Plan(context=64, slots=1, threads=1, rows=8))
    assert "is not of" in odd.refused
