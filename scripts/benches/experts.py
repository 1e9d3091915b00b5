"""What expert shards cost in quality: the perplexity of a small mixture of experts on text that it
never saw, for every floor of routing mass, over that of the whole model.

Experts are ranked on other text than the one that is measured on. The shard of a floor has the most
used experts of each layer, as many as reach it, and equally many of every layer. Shards that are
served have multiples of 16 experts where there are more; here any number will do, since a curve of
two points says little. Every shard is written and loaded as it would be served.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trio
from figures import Figure
from meshnode_expert_shards.composing import Source, compose
from meshnode_expert_shards.counter import ranking_of
from meshnode_expert_shards.counting import CountingContext
from meshnode_expert_shards.frames import Counted
from meshnode_llama_cpp.context import Plan
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.experts.assignment import MIN_MASS, fewest
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking
from p2p_mesh.core.experts.shard import shard_recipe
from p2p_mesh.core.gguf import read_header

MODELS = Path(__file__).parents[2] / "tests/models"
MODEL, TEXTS = MODELS / "demo-moe.gguf", MODELS / "demo-moe.texts.json"
FLOORS = tuple(percent / 100 for percent in (*range(50, 96, 5), 96, 97, 98, 99, 100))
WANTED = 1.05
"""Of the perplexity, at the default floor."""
PLAN = Plan(context=1024, slots=1, threads=1, rows=512)

_NOBODYS = "0" * 64


@dataclass(frozen=True)
class Extent:
    texts: int
    floors: tuple[float, ...] = FLOORS
    model: Path = MODEL
    told: Path = TEXTS


FULL = Extent(texts=150)
QUICK = Extent(texts=40, floors=(0.5, MIN_MASS, 1.0))

Kept = Sequence[Sequence[int]]
"""Experts of each layer, rising."""


@dataclass(frozen=True)
class Point:
    """A shard, and what it makes of the text."""

    mass: float
    experts: int
    perplexity: float


class Reader:
    """A model that reads texts, and counts what its routers choose meanwhile."""

    def __init__(self, path: Path) -> None:
        self.source = source_of(path)
        found = layout(self.source.header)
        assert found is not None
        self.layout: Layout = found
        self.read = 0
        """Tokens."""
        self._model = Model(str(path), name=path.stem, progress=lambda _: None)
        self._context = CountingContext(
            self._model, PLAN, experts=found.experts, family=self.source.header.architecture
        )

    def perplexity(self, texts: Sequence[str]) -> float:
        """Of all tokens of the texts, each by itself."""
        found = [one for text in texts for one in self._surprises(self._model.tokenize(text))]
        return math.exp(math.fsum(found) / len(found))

    def layers(self) -> tuple[LayerRanking, ...]:
        return self._context.counting.rankings()

    def _surprises(self, tokens: Sequence[int]) -> Iterator[float]:
        """How little each token was expected, in nats; nothing is expected of the first."""
        context, tokens = self._context, list(tokens[: PLAN.context])
        context.clear()
        for at in range(0, len(tokens), PLAN.rows):
            part = tokens[at : at + PLAN.rows]
            context.rows.clear()
            first = context.rows.add(0, at, part, outputs=len(part))
            context.decode()
            self.read += len(part)
            for row, following in enumerate(tokens[at + 1 : at + 1 + len(part)]):
                yield surprise(context.logits(first + row), following)


def surprise(logits: np.ndarray, token: int) -> float:
    exact = logits.astype(np.float64) - float(logits.max())
    return float(np.log(np.exp(exact).sum()) - exact[token])


def source_of(path: Path) -> Source:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Source(read_header(data, len(data)), lambda at, size: data[at : at + size])


def best(ranking: Ranking, floor: float, least: int) -> Kept:
    """The most used experts of each layer: the fewest that have so much of the routing mass."""
    orders = [
        sorted(range(ranking.experts), key=lambda one: (-layer.masses[one], one))
        for layer in ranking.layers
    ]
    for keep in range(least, ranking.experts):
        kept = [sorted(order[:keep]) for order in orders]
        if ranking.mass(kept) >= floor:
            return kept
    return [sorted(order) for order in orders]


async def measure(extent: Extent = FULL) -> list[Figure]:
    return await trio.to_thread.run_sync(curve, extent)


def curve(extent: Extent) -> list[Figure]:
    texts: Mapping[str, list[str]] = json.loads(extent.told.read_text())
    ranked, held_out = texts["ranking"][: extent.texts], texts["held_out"][: extent.texts]
    start()
    whole = Reader(extent.model)
    whole.perplexity(ranked)
    counted = Counted(layers=whole.layers(), read=whole.read, written=0)
    ranking = ranking_of(counted, _NOBODYS, whole.layout)
    right = whole.perplexity(held_out)
    points: dict[float, Point] = {}
    for floor in dict.fromkeys((*extent.floors, MIN_MASS)):
        points[floor] = point(whole, ranking, floor, held_out)
        print(f"floor {floor:.2f}: {points[floor]}", file=sys.stderr, flush=True)
    return [*figures(points, right), Figure("skew", skew(ranking), "of the routing mass")]


def point(whole: Reader, ranking: Ranking, floor: float, texts: Sequence[str]) -> Point:
    kept = best(ranking, floor, fewest(whole.layout))
    mass = ranking.mass(kept)
    recipe = shard_recipe(whole.source.header, whole.layout, kept, model=_NOBODYS, mass=mass)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "shard.gguf"
        compose(recipe, keys=whole.source, sources=[whole.source], target=target)
        return Point(mass, len(kept[0]), Reader(target).perplexity(texts))


def skew(ranking: Ranking) -> float:
    """What the most used fifth of the experts takes, as the mean of the layers."""
    count = round(ranking.experts / 5)
    taken = (sum(sorted(layer.shares)[-count:]) for layer in ranking.layers)
    return sum(taken) / len(ranking.layers)


def least_floor(points: Mapping[float, Point], right: float) -> float:
    """From which on no shard is worse than is wanted at the default."""
    bad = [floor for floor, one in points.items() if one.perplexity > WANTED * right]
    return min((one for one in points if one > max(bad, default=0.0)), default=1.0)


def figures(points: Mapping[float, Point], right: float) -> list[Figure]:
    """`right`: the perplexity of the whole model."""
    at_default = points[MIN_MASS].perplexity / right
    found = [
        Figure("perplexity_ratio_at_default", at_default, "x", "<=", WANTED),
        Figure("default_floor", MIN_MASS, "of the routing mass"),
        Figure("least_floor", least_floor(points, right), "of the routing mass"),
        Figure("perplexity_whole", right, ""),
    ]
    for floor, one in sorted(points.items()):
        found += [
            Figure(f"perplexity_ratio_{floor:.2f}", one.perplexity / right, "x"),
            Figure(f"mass_{floor:.2f}", one.mass, "of the routing mass"),
            Figure(f"experts_{floor:.2f}", one.experts, "of each layer"),
        ]
    return found
