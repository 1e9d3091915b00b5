"""llama.cpp's questions are asked in the calls in which they are turned on, and in no others."""

from __future__ import annotations

from typing import Any

import pytest
from meshnode_expert_shards import switch
from meshnode_expert_shards.switch import Switch
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model

from tests.plugins.expert_shards.demo import Cut

PLAN = Plan(context=64, slots=1, threads=1, rows=32)


class Asked(Context):
    """Counts the questions."""

    def _adapt(self, params: Any) -> None:
        self.count = 0
        self._callback = L.ggml_backend_sched_eval_callback(self._watch)
        self.switch = Switch(self._callback)
        self.switch.attach(params)

    def _watch(self, _tensor: int, asks: bool, _data: object) -> bool:
        self.count += asks
        return False

    def run(self, rows: int, position: int) -> int:
        """Questions of a call."""
        before = self.count
        self.rows.clear()
        self.rows.add(0, position, [5] * rows, outputs=1)
        self.decode()
        return self.count - before


@pytest.fixture
def context(halves: Cut) -> Asked:
    start()
    return Asked(Model(str(halves.shards[0]), name="x", progress=lambda _: None), PLAN)


def test_questions_are_asked_only_where_they_are_turned_on(context: Asked) -> None:
    assert context.switch.find(context.handle)
    assert context.run(4, 0) > 50
    context.switch.turn(on=False)
    assert [context.run(count, place) for count, place in ((4, 4), (1, 8), (1, 9), (6, 10))] == [
        0, 0, 0, 0,
    ]  # fmt: skip
    context.switch.turn(on=True)
    assert context.run(6, 16) > 50, "also in a graph that is used again"
    context.switch.turn(on=False)
    assert [context.run(6, 22), context.run(1, 28), context.run(1, 29)] == [0, 0, 0]


def test_version_with_another_form_is_not_touched(
    context: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Switch(L.ggml_backend_sched_eval_callback(lambda *_: False))
    assert not other.find(context.handle), "its callback is not the one of this context"
    monkeypatch.setattr(switch, "_SCHEDULER", "none_of_that_name")
    assert not context.switch.find(context.handle)
