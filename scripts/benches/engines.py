"""Engines in one process, asked by lines of JSON: what computation takes without any transport.

    engines.py MODEL CONTEXT SLOTS FOLDER

They compute as the nodes' engines do, with one thread: the whole model, and its halves, one after
the other. The halves' files are made in FOLDER. It is a program of its own: llama.cpp's threads and
memory stay out of the bench.

Halves that are far apart wait for each other, and a core that has waited 20 ms computes some per
cent slower than one that has not. So where a `rest` is asked for, a half waits as long before it
computes; the waiting does not count.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.library import L, start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.scheduler import Limits
from meshnode_skippy.composing import compose
from meshnode_skippy.compute import StageContext
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.wiring import wiring

from p2p_mesh.core import families
from p2p_mesh.core.families.recipe import Recipe
from p2p_mesh.core.gguf import read_header

TABLE = "token_embd.weight"
_ALLOCATED = re.compile(rb" buffer size = +([\d.]+) MiB")
_HEAD = 64 << 20
"""Bytes of a file in which its header is."""

_said = bytearray()
"""All that llama.cpp has logged since somebody last looked."""

Row = tuple[int, int, int]
"""A sequence, a position in it, and the token there."""


@L.llama_log_callback  # type: ignore[untyped-decorator]
def _log(_level: int, text: bytes, _data: Any) -> None:
    _said.extend(text)


class Engine(Protocol):
    rest: float
    """Seconds to wait before each part of a step,"""
    rested: float
    """and those that were waited so far."""

    def step(self, rows: Sequence[Row], *, answered: int) -> list[int]:
        """Computes rows; the likeliest tokens after the last of them."""
        ...

    def forget(self, slot: int) -> None: ...


class Whole:
    """The model as one, which never rests."""

    rest = rested = 0.0

    def __init__(self, path: Path, plan: Plan) -> None:
        self._context = Context(_load(path, part="whole"), plan)

    def step(self, rows: Sequence[Row], *, answered: int) -> list[int]:
        context, silent = self._context, len(rows) - answered
        context.rows.clear()
        for place, (slot, position, token) in enumerate(rows):
            context.rows.add(slot, position, [token], outputs=int(place >= silent))
        context.decode()
        return [int(context.logits(row).argmax()) for row in range(silent, len(rows))]

    def forget(self, slot: int) -> None:
        self._context.forget(slot)


class Halves:
    """The model as two stages; a step is one of the first, then one of the second. `memory`: the
    bytes of each.
    """

    def __init__(self, path: Path, plan: Plan, folder: Path) -> None:
        cutting = families.study(_header(path))
        middle = cutting.total // 2
        recipes = cutting.recipe(0, middle), cutting.recipe(middle, cutting.total)
        self._table = Embeddings(path, TABLE) if recipes[0].entry == "rows" else None
        self._stages: list[StageContext] = []
        self.rest = self.rested = 0.0
        self.memory: list[int] = []
        for recipe in recipes:
            self._stages.append(_stage(path, plan, recipe, folder))
            self.memory.append(allocated())
        if self._table:  # which is not in the first stage's file, and mapped beside it
            self.memory[0] += _size(path, TABLE)

    def step(self, rows: Sequence[Row], *, answered: int) -> list[int]:
        slots, positions, tokens = np.array(rows, np.int32).T.copy()
        silent = len(rows) - answered
        outputs = (np.arange(len(rows)) >= silent).astype(np.int8)
        given = self._table.rows(tokens) if self._table else None
        first, last = self._stages
        self._wait()
        left = first.run(slots, positions, tokens, outputs, given)
        self._wait()
        last.run(slots, positions, tokens, outputs, left)
        return [int(last.logits(row).argmax()) for row in range(silent, len(rows))]

    def forget(self, slot: int) -> None:
        for stage in self._stages:
            stage.forget(slot)

    def _wait(self) -> None:
        if self.rest:
            begin = time.perf_counter()
            time.sleep(self.rest)
            self.rested += time.perf_counter() - begin


def _load(path: Path, part: Any) -> Model:
    return Model(str(path), name=path.stem, progress=lambda _: None, part=part)


def _stage(path: Path, plan: Plan, recipe: Recipe, folder: Path) -> StageContext:
    target = folder / f"{recipe.start}-{recipe.end}.gguf"
    compose(recipe, metadata=path, sources=[path], target=target)
    return StageContext(_load(target, part="layers"), plan, wiring(recipe))


def _header(path: Path) -> Any:
    with path.open("rb") as file:
        return read_header(file.read(_HEAD), path.stat().st_size)


def _size(path: Path, tensor: str) -> int:
    return next(int(one.n_bytes) for one in gguf.GGUFReader(path).tensors if one.name == tensor)


def decode(engine: Engine, *, prompt: int, answer: int, rest: float = 0.0) -> float:
    """Seconds for a token of an answer, greedy, after a prompt of so many tokens."""
    token = _read(engine, 0, prompt)
    engine.rest, engine.rested = rest, 0.0
    begin = time.perf_counter()
    for place in range(prompt, prompt + answer):
        (token,) = engine.step([(0, place, token)], answered=1)
    return (time.perf_counter() - begin - engine.rested) / answer


def curve(engine: Engine, *, most: int, prompt: int, repeats: int) -> list[float]:
    """Seconds of a step with the next token of 1, 2 ... `most` sequences."""
    for slot in range(most):
        _read(engine, slot, prompt)
    ends = [prompt] * most
    found: list[list[float]] = [[] for _ in range(most)]
    for _ in range(repeats):
        for count in range(1, most + 1):
            rows = [(slot, ends[slot], _token(ends[slot])) for slot in range(count)]
            found[count - 1].append(_seconds(engine, rows))
            ends[:count] = [end + 1 for end in ends[:count]]
    return [statistics.median(times) for times in found]


def window(engine: Engine, *, rows: int, prompt: int, repeats: int, rest: float = 0.0) -> float:
    """Seconds of a step with so many rows of one sequence, all answered."""
    _read(engine, 0, prompt)
    engine.rest = rest
    times = []
    for turn in range(repeats):
        start = prompt + turn * rows
        times.append(
            _seconds(engine, [(0, place, _token(place)) for place in range(start, start + rows)])
        )
    return statistics.median(times)


def _seconds(engine: Engine, rows: Sequence[Row]) -> float:
    engine.rested, begin = 0.0, time.perf_counter()
    engine.step(rows, answered=len(rows))
    return time.perf_counter() - begin - engine.rested


def _read(engine: Engine, slot: int, count: int) -> int:
    """A sequence reads a prompt; the token that follows."""
    engine.rest = 0.0
    engine.forget(slot)
    return engine.step([(slot, place, _token(place)) for place in range(count)], answered=1)[0]


def _token(place: int) -> int:
    """Some token."""
    return 300 + place % 1000


def allocated() -> int:
    """Bytes that llama.cpp has said to allocate since the last call: weights, KV, computation."""
    total = sum(float(size) for size in _ALLOCATED.findall(_said))
    _said.clear()
    return int(total * 2**20)


def main() -> None:
    path, context, slots, folder = sys.argv[1:]
    start()
    L.llama_log_set(_log, None)
    plan = Plan(int(context), int(slots), 1, Limits().rows)
    whole = Whole(Path(path), plan)
    alone = allocated()
    halves = Halves(Path(path), plan, Path(folder))
    engines: Mapping[str, Engine] = {"whole": whole, "halves": halves}
    kinds: Mapping[str, Callable[..., Any]] = {"decode": decode, "curve": curve, "window": window}
    print(json.dumps({"whole": alone, "stages": halves.memory}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        found = kinds[asked.pop("what")](engines[asked.pop("of")], **asked)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
