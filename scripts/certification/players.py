"""A whole model and one in stages, as those who play a story."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from certification.story import CONTEXT, ROWS, SLOTS, Logits, Part, Rules
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from meshnode_skippy.composing import compose
from meshnode_skippy.compute import StageContext
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.wiring import wiring

from p2p_mesh.core.families.recipe import Recipe

THREADS = 1
PLAN = Plan(context=CONTEXT, slots=SLOTS, threads=THREADS, rows=ROWS)


class AnyContext(Context):
    takes_forgetful = True


def load(path: Path) -> Model:
    return Model(str(path), name=path.stem, progress=lambda _: None, part="layers")


class Whole:
    def __init__(self, path: Path, make: Callable[[Model, Plan], Context] = AnyContext) -> None:
        model = load(path)
        self._context = context = make(model, PLAN)
        self.vocabulary = model.token_count
        self._remembers = context.remembers
        self._window = model.window

    def rules(self, length: int) -> Rules:
        """For stories of that length."""
        rules = self._context.rules
        return Rules(self._remembers, trims=not rules.forgets(length))

    def read(self, parts: Sequence[Part]) -> list[Logits]:
        rows = self._context.rows
        rows.clear()
        answered = []
        for part in parts:
            first = rows.add(part.slot, part.position, list(part.tokens), outputs=part.answered)
            answered += range(first, first + part.answered)
        self._context.decode()
        return [self._context.logits(row).copy() for row in answered]

    def trim(self, slot: int, position: int) -> None:
        self._context.trim(slot, position)

    def save(self, slot: int) -> bytes:
        return self._context.save(slot)

    def restore(self, slot: int, state: bytes) -> None:
        self._context.restore(slot, state)

    def copy(self, source: int, slot: int) -> None:
        self._context.copy(source, slot)


class Workshop:
    """Opens the stages of a model; what two ways to cut it have in common, once."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._opened: dict[tuple[int, int], StageContext] = {}

    def table(self) -> Embeddings:
        return Embeddings(self._path)

    def stage(self, recipe: Recipe) -> StageContext:
        layers = recipe.start, recipe.end
        if layers not in self._opened:
            self._opened[layers] = self._open(recipe)
        found = self._opened[layers]
        found.clear()
        return found

    def _open(self, recipe: Recipe) -> StageContext:
        target = self._folder / f"{recipe.start}-{recipe.end}.gguf"
        compose(recipe, metadata=self._path, sources=[self._path], target=target)
        try:
            return StageContext(load(target), PLAN, wiring(recipe))
        finally:
            target.unlink()  # it is mapped


class Stages:
    """`disturb`: by how much each number on the wire is changed, as a part of it."""

    def __init__(self, workshop: Workshop, recipes: Sequence[Recipe], disturb: float = 0.0) -> None:
        self._stages = [workshop.stage(recipe) for recipe in recipes]
        self._table = workshop.table() if recipes[0].entry == "rows" else None
        self._disturb, self._random = disturb, np.random.default_rng(0)

    def read(self, parts: Sequence[Part]) -> list[Logits]:
        lengths = [len(part.tokens) for part in parts]
        slots = np.repeat(np.array([part.slot for part in parts], np.int32), lengths)
        positions = np.concatenate(
            [np.arange(part.position, part.position + len(part.tokens)) for part in parts]
        ).astype(np.int32)
        tokens = np.concatenate([part.tokens for part in parts]).astype(np.int32)
        outputs = np.concatenate([_marks(part) for part in parts])
        rows = None if self._table is None else self._table.rows(tokens)
        for stage in self._stages:
            rows = stage.run(slots, positions, tokens, outputs, rows)
            if rows is not None and self._disturb:
                noise = self._random.standard_normal(rows.shape, dtype=np.float32)
                rows = rows * (1 + np.float32(self._disturb) * noise)
        return [self._stages[-1].logits(row).copy() for row in np.flatnonzero(outputs).tolist()]

    def trim(self, slot: int, position: int) -> None:
        for stage in self._stages:
            stage.trim(slot, position)

    def save(self, slot: int) -> list[bytes]:
        return [stage.save(slot) for stage in self._stages]

    def restore(self, slot: int, state: list[bytes]) -> None:
        for stage, part in zip(self._stages, state, strict=True):
            stage.restore(slot, part)

    def copy(self, source: int, slot: int) -> None:
        for stage in self._stages:
            stage.copy(source, slot)


def _marks(part: Part) -> np.ndarray:
    marks = np.zeros(len(part.tokens), np.int8)
    marks[len(marks) - part.answered :] = 1
    return marks
