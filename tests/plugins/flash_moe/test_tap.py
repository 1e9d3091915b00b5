from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from meshnode_flash_moe.tap import Tap
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.errors import ModelError

LAYERS = (0, 1)


class Tapped(Context):
    """A model that is there as a whole, and whose routers are heard."""

    def __init__(self, path: Path, layers: tuple[int, ...] = LAYERS) -> None:
        self.heard: list[tuple[int, NDArray[np.int32]]] = []
        self.failure: Exception | None = None
        places = {layer: place for place, layer in enumerate(layers)}
        self.tap = Tap(places, experts=16, need=self.need)
        model = Model(str(path), name="m", progress=lambda _: None)
        super().__init__(model, Plan(context=64, slots=2, threads=1, rows=16))

    def need(self, place: int, ids: NDArray[np.int32]) -> None:
        if self.failure is not None:
            raise self.failure
        self.heard.append((place, ids.copy()))

    def _adapt(self, params: object) -> None:
        self.tap.attach(params)

    def compute(self, *tokens: int, outputs: int | None = None) -> None:
        self.heard.clear()
        self.clear()
        self.rows.clear()
        self.rows.add(0, 0, list(tokens), outputs=len(tokens) if outputs is None else outputs)
        self.decode()


@pytest.fixture(scope="module")
def context(mixture: Path) -> Tapped:
    return Tapped(mixture)


def test_each_layer_says_where_each_row_goes(context: Tapped) -> None:
    context.compute(5, 6, 7)
    assert [place for place, _ in context.heard] == [0, 1]
    for _, ids in context.heard:
        assert ids.shape == (3, 4)
        assert all(len(set(row)) == 4 for row in ids.tolist())
    context.tap.end()


def test_rows_go_where_each_would_go_alone(context: Tapped) -> None:
    context.compute(5, 6, 7)
    together = context.heard[0][1][0].tolist()
    context.compute(5)
    assert context.heard[0][1].tolist() == [together]


def test_a_call_that_answers_no_row_ends_with_none(context: Tapped) -> None:
    context.compute(5, 6, 7, outputs=0)
    assert [ids.shape for _, ids in context.heard] == [(3, 4), (0, 4)]
    context.tap.end()


def test_what_goes_wrong_is_told_after_the_call(context: Tapped) -> None:
    context.failure = OSError("the disk is gone")
    context.compute(5)
    with pytest.raises(OSError, match="the disk is gone"):
        context.tap.end()
    context.failure = None
    context.tap.end()


def test_a_layer_that_says_nothing_is_found_out(mixture: Path) -> None:
    context = Tapped(mixture, (0, 1, 7))
    with pytest.raises(ModelError, match="m does not say which experts of layer 7"):
        context.tap.check("m")


def test_groups_of_experts_are_heard_as_well(grouped: Path) -> None:
    context = Tapped(grouped, (1,))
    context.tap.check("m")
    context.compute(5, 6)
    assert [ids.shape for _, ids in context.heard] == [(2, 4)]


def test_nothing_is_heard_any_more_once_it_is_stopped(mixture: Path) -> None:
    context = Tapped(mixture)
    context.tap.stop()
    context.compute(5, 6)
    assert not context.heard
