"""What routers choose, counted while llama.cpp computes, against the same worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from meshnode_expert_shards.counting import Counting, CountingContext, shares_of
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors, watcher

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_model, write_moe

EXPERTS, USED = 16, 4
PLAN = Plan(context=64, slots=4, threads=1, rows=32)
Calls = list[list[tuple[int, int, list[int]]]]
"""Of each call, its sequences: which, from where on, and the tokens."""

CALLS: Calls = [
    [(0, 0, [5, 6, 7, 8, 9])],
    [(0, 5, [10]), (2, 0, [11, 12, 13])],  # no neighbours: two graphs
    [(0, 6, [14, 15]), (1, 0, [16]), (2, 3, [17])],  # unequal: two graphs
]
TOKENS = 13


class Logits(Context):
    """Keeps what the routers said before anything was chosen."""

    def _adapt(self, params: Any) -> None:
        self._tensors = Tensors()
        self.found: dict[int, list[np.ndarray[Any, Any]]] = {}
        watch, _ = watcher(self._tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)
        params.cb_eval = self._callback
        params.n_outputs_max = 32

    def _ask(self, tensor: int) -> bool:
        return self._tensors.name(tensor).startswith(b"ffn_moe_logits-")

    def _tell(self, tensor: int) -> bool:
        data = np.empty(self._tensors.size(tensor) // 4, np.float32)
        self._tensors.read(tensor, data.ctypes.data, 0, data.nbytes)
        layer = int(self._tensors.name(tensor).rpartition(b"-")[2])
        self.found.setdefault(layer, []).append(data.reshape(-1, EXPERTS))
        return True


def loaded(path: Path) -> Model:
    start()
    return Model(str(path), name="tiny", progress=lambda _: None)


def run(context: Context, calls: Calls) -> None:
    for call in calls:
        context.rows.clear()
        for slot, position, tokens in call:
            context.rows.add(slot, position, tokens, outputs=len(tokens))
        context.decode()


def by_hand(path: Path, kind: str) -> dict[int, tuple[np.ndarray[Any, Any], Any]]:
    """Counts and masses of each layer."""
    context = Logits(loaded(path), PLAN)
    context.found.clear()
    run(context, CALLS)
    tensors = {one.name: one.data for one in gguf.GGUFReader(path).tensors}
    return {
        layer: _chosen(np.concatenate(logits), tensors.get(f"blk.{layer}.exp_probs_b.bias"), kind)
        for layer, logits in context.found.items()
    }


def _chosen(logits: np.ndarray[Any, Any], bias: Any, kind: str) -> tuple[np.ndarray[Any, Any], Any]:
    exact = logits.astype(np.float64)
    if kind == "softmax":
        likely = probable = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    else:
        probable = 1 / (1 + np.exp(-exact))
        likely = probable + bias
        groups = likely.reshape(-1, 4, EXPERTS // 4)
        worth = np.sort(groups, 2)[:, :, -2:].sum(2)
        best = np.argsort(-worth, 1)[:, :2]
        mask = np.full((len(likely), 4, 1), -np.inf)
        np.put_along_axis(mask, best[:, :, None], 0, 1)
        likely = (groups + mask).reshape(likely.shape)
    chosen = np.argsort(-likely, 1)[:, :USED]
    weights = np.take_along_axis(probable, chosen, 1)
    shares = weights / weights.sum(1, keepdims=True)
    masses = np.bincount(chosen.ravel(), shares.ravel(), EXPERTS)
    return np.bincount(chosen.ravel(), minlength=EXPERTS), masses


@pytest.mark.parametrize("kind", ["softmax", "grouped"])
def test_counts_are_those_worked_out_by_hand(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "moe.gguf"
    write_moe(path, kind=kind, experts=EXPERTS, used=USED)
    context = CountingContext(loaded(path), PLAN, experts=EXPERTS, family="any")
    run(context, CALLS)
    found, wanted = context.counting.rankings(), by_hand(path, kind)
    assert [one.layer for one in found] == sorted(wanted)
    for one in found:
        counts, masses = wanted[one.layer]
        assert list(one.counts) == counts.tolist()
        np.testing.assert_allclose(one.masses, masses, rtol=1e-5)
        assert sum(one.counts) == TOKENS * USED
        assert sum(one.masses) == pytest.approx(TOKENS)


def test_the_first_token_that_every_context_computes_does_not_count(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf")
    context = CountingContext(loaded(tmp_path / "moe.gguf"), PLAN, experts=16, family="any")
    assert not any(any(one.counts) for one in context.counting.rankings())


def test_a_family_that_shows_no_choices_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "dense.gguf")
    with pytest.raises(ModelError, match=r"the family llama computes no nodes that are named ffn"):
        CountingContext(loaded(tmp_path / "dense.gguf"), PLAN, experts=16, family="llama")


def test_an_expert_that_is_none_ends_the_counting(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf")
    context = CountingContext(loaded(tmp_path / "moe.gguf"), PLAN, experts=4, family="any")
    with pytest.raises(RuntimeError, match="chose an expert that is none"):
        run(context, CALLS)


def studied(*names: bytes) -> Counting:
    counting = Counting(4)
    counting._seen = dict.fromkeys(names, 0)
    counting.study("tiny", "any")
    return counting


def test_the_last_weights_that_a_graph_has_are_those_that_count() -> None:
    names = b"ffn_moe_topk-3", b"ffn_moe_weights-3", b"ffn_moe_weights_norm-3"
    assert studied(*names)._weights == {b"ffn_moe_weights_norm-3": 3}
    scaled = studied(*names, b"ffn_moe_weights_sum-3", b"ffn_moe_weights_scaled-3")
    assert scaled._weights == {b"ffn_moe_weights_scaled-3": 3}


def test_a_layer_without_both_nodes_is_not_counted() -> None:
    names = b"ffn_moe_topk-0", b"ffn_moe_topk-1", b"ffn_moe_weights-1", b"ffn_moe_weights-2"
    assert [one.layer for one in studied(*names).rankings()] == [1]


def test_weights_of_other_experts_are_found_out() -> None:
    counting = studied(b"ffn_moe_topk-1", b"ffn_moe_weights-1")
    counting._read = lambda tensor, kind: np.zeros(3, kind)  # type: ignore[method-assign]
    counting._weigh(1, 0)
    with pytest.raises(RuntimeError, match="layer 1 gave 3 weights of other experts"):
        counting.check()


def test_weights_that_did_not_come_by_are_found_out() -> None:
    counting = studied(b"ffn_moe_topk-1", b"ffn_moe_weights-1")
    counting._now[1] = np.zeros((1, 1), np.int32)
    with pytest.raises(RuntimeError, match=r"layers \[1\] gave no weights"):
        counting.check()


@given(arrays(np.float32, (3, 4), elements=st.floats(0, 1e6, width=32)))
def test_every_token_has_shares_of_one(weights: np.ndarray[Any, Any]) -> None:
    shares = shares_of(weights)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (shares >= 0).all()


def test_weights_that_are_no_numbers_count_as_none() -> None:
    broken = np.array([[np.nan, 1, 1, 0], [np.nan, np.nan, np.nan, np.nan]], np.float32)
    assert shares_of(broken).tolist() == [[0, 0.5, 0.5, 0], [0.25] * 4]
