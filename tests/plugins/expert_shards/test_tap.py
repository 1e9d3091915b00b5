"""What routers are given, heard from llama.cpp's graph; and what they would choose of it, against
what llama.cpp chooses in the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meshnode_expert_shards.counting import CHOSEN, WEIGHTS, shares_of
from meshnode_expert_shards.routers import read
from meshnode_expert_shards.serving import WeighingContext
from meshnode_expert_shards.tap import SAMPLE, Graph
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.nodes import Tensors, watcher

from p2p_mesh.testing.models import write_moe
from tests.plugins.expert_shards.demo import QUESTIONS, Cut, cut

PLAN = Plan(context=256, slots=2, threads=1, rows=128)


class Chosen(Context):
    """Keeps what the routers of layers choose, of the last call."""

    def _adapt(self, params: Any) -> None:
        self._tensors, self.found = Tensors(), {}
        watch, _ = watcher(self._tensors.name_offset, self._ask, self._tell)
        self._callback = L.ggml_backend_sched_eval_callback(watch)
        params.cb_eval = self._callback

    found: dict[bytes, Any]

    def _ask(self, tensor: int) -> bool:
        return self._tensors.name(tensor).startswith((CHOSEN, *WEIGHTS))

    def _tell(self, tensor: int) -> bool:
        name = self._tensors.name(tensor)
        if name.startswith(CHOSEN):
            self.found[name] = self._tensors.numbers(tensor)
        else:
            data = np.empty(self._tensors.size(tensor) // 4, np.float32)
            self._tensors.read(tensor, data.ctypes.data, 0, data.nbytes)
            self.found[name] = data
        return True

    def shares(self, layer: int, experts: int) -> Any:
        chosen = self.found[b"%s-%d" % (CHOSEN, layer)]
        last = next(
            name for one in reversed(WEIGHTS) if (name := b"%s-%d" % (one, layer)) in self.found
        )
        found = np.zeros((len(chosen), experts))
        weights = self.found[last].reshape(chosen.shape)
        np.put_along_axis(found, chosen, shares_of(weights), 1)
        return found


def loaded(path: Path) -> Model:
    start()
    return Model(str(path), name="x", progress=lambda _: None)


class Turned:
    """A shard, of which one call can be heard."""

    def __init__(self, made: Cut, part: int) -> None:
        self.routers = read(made.routers, made.shards[part])
        self.model = loaded(made.shards[part])
        self.graph: Graph | None = None
        self.context = WeighingContext(self.model, PLAN, self.routers, lambda _: self.graph)

    def hear(self, tokens: list[int]) -> Any:
        self.graph = Graph(0, len(tokens))
        run(self.context, tokens)
        return self.context.given


def run(context: Context, tokens: list[int], slot: int = 0, position: int = 0) -> None:
    context.rows.clear()
    context.rows.add(slot, position, tokens, outputs=len(tokens) if len(tokens) <= 64 else 1)
    context.decode()


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("text", QUESTIONS)
def test_first_layer_chooses_as_the_whole_model_does(halves: Cut, part: int, text: str) -> None:
    shard, whole = Turned(halves, part), Chosen(model := loaded(halves.whole), PLAN)
    tokens = model.tokenize(text, special=True)
    given = shard.hear(tokens)
    run(whole, tokens)
    assert shard.context.rule is not None
    found = shard.routers.whole[0].shares(given[0], shard.context.rule)
    wanted = whole.shares(0, 32)
    assert len(tokens) >= 8
    assert [set(np.flatnonzero(row)) for row in found] == [
        set(np.flatnonzero(row)) for row in wanted
    ]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert sorted(given) == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["softmax", "grouped"])
def test_families_that_choose_otherwise_are_understood(kind: Any, tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", kind=kind, experts=16)
    made = cut(tmp_path / "moe.gguf", tmp_path, [0, 1, 4, 5, 8, 9, 12, 13])
    shard, whole = Turned(made, 0), Chosen(loaded(made.whole), PLAN)
    tokens = list(range(5, 30))
    given = shard.hear(tokens)
    run(whole, tokens)
    assert shard.context.rule is not None
    first = min(given)
    found = shard.routers.whole[first].shares(given[first], shard.context.rule)
    np.testing.assert_allclose(found, whole.shares(first, 16), atol=1e-5)


def test_rule_that_is_not_found_is_none(halves: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode_expert_shards.routers._FITS", -1.0)
    assert Turned(halves, 0).context.rule is None


@pytest.mark.parametrize("chosen", [[[99, 1, 2, 3]], [[1, 2]], np.empty((0, 4))])
def test_choice_that_cannot_be_shows_no_rule(
    halves: Cut, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensors, "numbers", lambda *_: np.array(chosen, np.int32))
    assert Turned(halves, 0).context.rule is None


def test_long_call_is_heard_by_its_last_rows(halves: Cut) -> None:
    shard = Turned(halves, 0)
    tokens = list(range(3, 3 + 100))
    long = shard.hear(tokens)
    assert {len(rows) for rows in long.values()} == {SAMPLE}
    assert sorted(long) == [0, 1, 2], "behind the last attention only answered rows go on"
    shard.context.clear()
    run(shard.context, tokens[:50], position=0)
    shard.graph = Graph(0, 50)
    run(shard.context, tokens[50:], position=50)
    np.testing.assert_allclose(shard.context.given[0][-50:], long[0][-50:], atol=0.05)


def test_no_call_is_asked_about_but_the_one_that_is_heard(
    questions: Callable[[], int], halves: Cut
) -> None:
    shard = Turned(halves, 0)
    before = questions()
    run(shard.context, list(range(20)))
    for step in range(20):
        run(shard.context, [7], position=20 + step)
    assert questions() == before
    shard.context.clear()
    shard.hear(list(range(20)))
    shard.graph = None
    heard = questions()
    assert heard > before
    for step in range(20):
        run(shard.context, [7], position=20 + step)
    assert questions() == heard


def test_call_that_is_heard_computes_the_same(halves: Cut) -> None:
    shard = Turned(halves, 0)
    run(shard.context, list(range(40)))
    plain = np.array([shard.context.logits(row) for row in range(40)])
    shard.context.clear()
    shard.hear(list(range(40)))
    np.testing.assert_array_equal([shard.context.logits(row) for row in range(40)], plain)


def test_graph_of_one_sequence_is_heard_beside_another(halves: Cut) -> None:
    shard = Turned(halves, 0)
    tokens = list(range(3, 43))
    alone = shard.hear(tokens)
    shard.context.clear()
    shard.graph = Graph(1, 39)
    rows = shard.context.rows
    rows.clear()
    rows.add(0, 0, [9], outputs=1)
    rows.add(1, 0, tokens, outputs=len(tokens))
    shard.context.decode()
    assert sorted(shard.context.given) == [0, 1, 2, 3]
    np.testing.assert_allclose(shard.context.given[0], alone[0][1:], atol=1e-4)


def test_what_stands_in_another_form_is_left_out(
    halves: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not of rows")

    shard = Turned(halves, 0)
    monkeypatch.setattr(Tensors, "last_rows", refuse)
    assert shard.hear(list(range(20))) == {}
