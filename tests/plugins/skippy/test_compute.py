"""Stages in one process: what they compute together is what the whole model computes, to the last
bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from meshnode_skippy.composing import compose
from meshnode_skippy.compute import StageContext
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.graph import Floats
from meshnode_skippy.wiring import Wiring, wiring
from numpy.typing import NDArray

from p2p_mesh.core import families
from p2p_mesh.core.gguf import read_header
from p2p_mesh.errors import ModelError, RemoteError
from p2p_mesh.testing.models import WINDOW, Kind, Shape, write_model

LAYERS = 6
PLAN = Plan(context=128, slots=3, threads=1, rows=48)
PROMPT = [1, 10, 20, 30, 40, 50, 60]
CUTS = [(3,), (1, 5)]

Rows = Sequence[tuple[int, int, Sequence[int]]]
"""Slot, position, tokens."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model in a file, whole and in the stages that were asked for."""

    path: Path
    whole: Context
    stages: dict[tuple[int, int], StageContext] = field(default_factory=dict)

    def cut(self, cut: Sequence[int]) -> list[StageContext]:
        ends = [*cut, LAYERS]
        return [self._stage(*one) for one in zip([0, *cut], ends, strict=True)]

    def _stage(self, start: int, end: int) -> StageContext:
        if (start, end) not in self.stages:
            data = self.path.read_bytes()
            recipe = families.study(read_header(data, len(data))).recipe(start, end)
            target = self.path.with_name(f"{self.path.stem}-{start}-{end}.gguf")
            compose(recipe, metadata=self.path, sources=[self.path], target=target)
            self.stages[start, end] = StageContext(load(target), PLAN, wiring(recipe))
        self.stages[start, end].clear()
        return self.stages[start, end]

    def read(self, rows: Rows) -> list[NDArray[np.float32]]:
        """The logits of all rows."""
        self.whole.rows.clear()
        for slot, position, tokens in rows:
            self.whole.rows.add(slot, position, list(tokens), outputs=len(tokens))
        self.whole.decode()
        count = sum(len(tokens) for _, _, tokens in rows)
        return [self.whole.logits(row).copy() for row in range(count)]

    def flow(self, stages: Sequence[StageContext], rows: Rows) -> list[NDArray[np.float32]]:
        """The same through stages."""
        lengths = [len(tokens) for _, _, tokens in rows]
        slots = np.repeat(np.array([slot for slot, _, _ in rows], np.int32), lengths)
        spans = [np.arange(at, at + len(tokens)) for _, at, tokens in rows]
        positions = np.concatenate(spans).astype(np.int32)
        tokens = np.concatenate([tokens for _, _, tokens in rows]).astype(np.int32)
        moved: Floats | None = Embeddings(self.path).rows(tokens)
        for stage in stages:
            moved = stage.run(slots, positions, tokens, np.ones(len(slots), np.int8), moved)
            assert (moved is None) == (stage is stages[-1])
            assert moved is None or moved.shape == (len(slots), stage.width)
        return [stages[-1].logits(row).copy() for row in range(len(slots))]


def load(path: Path) -> Model:
    return Model(str(path), name=path.stem, progress=lambda _: None, part="layers")


@pytest.fixture(scope="module", params=get_args(Kind))
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    start()
    path = tmp_path_factory.mktemp("stages") / f"{request.param}.gguf"
    write_model(path, kind=request.param, shape=Shape(layers=LAYERS))
    return Kept(path, Context(load(path), PLAN))


@pytest.fixture(autouse=True)
def empty(kept: Kept) -> None:
    kept.whole.clear()


def same(one: Sequence[NDArray[np.float32]], other: Sequence[NDArray[np.float32]]) -> bool:
    assert len(one) == len(other)
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("cut", CUTS)
def test_greedy_tokens_are_those_of_the_whole_model(kept: Kept, cut: Sequence[int]) -> None:
    stages = kept.cut(cut)
    rows: Rows = [(0, 0, PROMPT)]
    for position in range(len(PROMPT), len(PROMPT) + WINDOW):  # past the window that some see
        right = kept.read(rows)
        assert same(kept.flow(stages, rows), right)
        rows = [(0, position, [int(right[-1].argmax())])]


@pytest.mark.parametrize("cut", CUTS)
def test_sequences_of_unlike_length_go_together(kept: Kept, cut: Sequence[int]) -> None:
    stages = kept.cut(cut)
    for rows in (
        [(0, 0, PROMPT)],
        [(0, 7, [5]), (1, 0, PROMPT[:4]), (2, 0, PROMPT)],
        [(0, 8, [9, 8, 7]), (2, 7, [6])],
        [(0, 11, [4]), (1, 4, [3]), (2, 8, [2])],
    ):
        assert same(kept.flow(stages, rows), kept.read(rows))


@pytest.mark.parametrize("cut", CUTS)
def test_what_was_guessed_wrong_is_taken_back(kept: Kept, cut: Sequence[int]) -> None:
    stages = kept.cut(cut)
    members: list[Context] = [kept.whole, *stages]
    for rows in ([(0, 0, PROMPT)], [(0, 7, [91, 92, 93])], [(0, 8, [94])]):
        assert same(kept.flow(stages, rows), kept.read(rows))
        if rows[0][1] == 0:
            states = [one.save(0) for one in members]
        if rows[0][1] == 7 and kept.whole.rules.trims:
            for one in members:
                one.trim(0, 8)
        elif rows[0][1] == 7:
            for one, state in zip(members, states, strict=True):
                one.restore(0, state)
            assert same(kept.flow(stages, [(0, 7, [91])]), kept.read([(0, 7, [91])]))


def test_a_beginning_is_copied_in_all_stages(kept: Kept) -> None:
    stages = kept.cut((2, 4))
    assert same(kept.flow(stages, [(0, 0, PROMPT)]), kept.read([(0, 0, PROMPT)]))
    for one in (kept.whole, *stages):
        one.copy(0, 2)
    rows: Rows = [(0, 7, [7]), (2, 7, [8, 9])]
    assert same(kept.flow(stages, rows), kept.read(rows))


def test_activations_of_another_shape_are_refused(kept: Kept) -> None:
    later = kept.cut((3,))[1]
    one, marks = np.zeros(1, np.int32), np.ones(1, np.int8)
    width = kept.cut((3,))[0].width
    for given in (None, np.zeros((1, width + 1), np.float32), np.zeros((2, width), np.float32),
                  np.zeros((1, width), np.float16), np.zeros(width, np.float32)):  # fmt: skip
        with pytest.raises(RemoteError, match="activations are"):
            later.run(one, one, one, marks, given)  # type: ignore[arg-type]


def test_every_stage_but_the_last_has_no_vocabulary(kept: Kept) -> None:
    first, middle, last = kept.cut((2, 4))
    assert (first.vocabulary, middle.vocabulary, last.vocabulary) == (1, 1, 512)
    assert last.width == 0


def test_an_activation_takes_the_place_of_what_was_computed(kept: Kept) -> None:
    """The whole model as its own second stage: half of it is fed what the first half gave."""
    rows: Rows = [(0, 0, PROMPT), (1, 0, PROMPT[:3])]
    first = kept.cut((3,))[0]
    wire = Wiring(entry="inject", blocks=LAYERS, entry_block=2)
    second = StageContext(load(kept.path), PLAN, wire)
    assert same(kept.flow([first, second], rows), kept.read(rows))


def test_file_whose_graph_has_no_such_block_is_refused(kept: Kept) -> None:
    with pytest.raises(ModelError, match=r"computes nothing that is named .*l_out-9"):
        StageContext(load(kept.path), PLAN, Wiring(entry="tokens", blocks=10, exit_block=9))
