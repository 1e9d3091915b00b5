"""A model in two stages against the same model as one, against llama.cpp's own split (RPC), and
against the law of what a split may cost.

The stages are real nodes on loopback, one thread each, started as users start them and asked over
HTTP. What is wanted stands here, and how much is measured for it; the nodes stand in stages.py,
what needs no node in engines.py.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from random import Random

from bounds import best_rate
from direct import Direct, run_engines
from engine import SHAPE, random_model
from figures import Figure
from load import Server, completion, prefill_rate, speed
from pairs import Turns
from peer import Terms, bench_rate, build, run_rpc
from stages import solo_node, split_nodes
from told import told_models

from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.cable import open_cable
from p2p_mesh.testing.models import Shape

LARGE = Shape(layers=20, width=2048, heads=32, kv_heads=4, feed=5632, vocabulary=32000,
              context=8192)  # fmt: skip
"""A billion parameters: a token takes some 50 ms."""
STAGES = 2
EVEN = 0, 7, SHAPE.layers
"""Where a plan cuts it for answers: the head weighs as much as two layers, and goes with the last
ones.
"""
CONTEXT, SLOTS = 1280, 16
FEW, ONE = 512, 1
"""Context and slots where there is one stream."""
PROMPT, LONG = 64, 1024
"""Tokens of a prompt; of one that is read for its own sake."""
ANSWER, LARGE_ANSWER = 96, 64
WINDOW = 4
"""Tokens that one trip brings, where all guesses are right."""
ROUND_TRIPS = (5, 20, 50)
"""Milliseconds."""
PINGS = 41
"""Of which the median is taken."""

TRANSPORT_WANTED = 900.0
EFFICIENCY_WANTED = 0.90
TOTAL_WANTED = {16: 1.5}
PREFILL_WANTED = 1.7
MEMORY_WANTED = 0.55
SINGLE_WANTED = 0.97
OVERHEAD_WANTED, DRAFT_WANTED = 1.5, 2.0

Side = Callable[[Random], Awaitable[float]]
Round = Mapping[str, float]


@dataclass(frozen=True)
class Plan:
    """How many rounds of each measurement; of the streams, by their number."""

    transports: int
    streams: Mapping[int, int]
    prefills: int
    singles: int
    laws: int
    round_trips: Sequence[int] = ROUND_TRIPS
    steps: int = 5
    """Of each size in a curve."""
    tries: int = 3


FULL = Plan(transports=8, streams={8: 3, 16: 3}, prefills=3, singles=4, laws=3)
QUICK = Plan(transports=3, streams={8: 1, 16: 1}, prefills=1, singles=1, laws=1,
             round_trips=(20,), steps=2, tries=1)  # fmt: skip


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns, cache = Turns(plan.tries), cache_dir() / "bench"
    await build(cache, turns.say)
    small, large = (random_model(cache, turns.say, shape) for shape in (SHAPE, LARGE))
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        bench = Bench(turns, plan, Path(folder), cache)
        return [*await bench.small(small), *await bench.large(large), *await bench.law(small)]


@dataclass(frozen=True)
class Bench:
    turns: Turns
    plan: Plan
    folder: Path
    cache: Path

    async def small(self, model: Path) -> Sequence[Figure]:
        """Where a token is cheap, so that everything beside it shows; and many streams. A prompt
        is read in halves: the head computes one row of it, and weighs nothing.
        """
        terms = Terms(model, 1, CONTEXT, SLOTS)
        async with (
            run_engines(terms, self.folder) as direct,
            solo_node(self.folder, terms) as solo,
        ):
            async with split_nodes(self.folder, terms, cuts=EVEN) as split:
                figures = [
                    *await self._transport(direct, solo, split),
                    *await self._streams(direct, solo, split),
                ]
            async with split_nodes(self.folder, terms, cuts=halves(SHAPE)) as split:
                figures += await self._prefill(solo, split)
            return [*figures, _memory_figure(direct)]

    async def _transport(self, direct: Direct, solo: Server, split: Server) -> Sequence[Figure]:
        sides: dict[str, Side] = {
            "direct": lambda _: direct.decode(prompt=PROMPT, answer=ANSWER),
            "solo": partial(_token_seconds, solo, ANSWER),
            "split": partial(_token_seconds, split, ANSWER),
        }
        found = await self.turns.rounds("one stream", sides, self.plan.transports)
        extra = _median(found, lambda one: one["split"] - one["direct"])
        ratio = _median(found, lambda one: one["solo"] / one["split"])
        return [
            Figure("transport_us", extra * 1e6, "us", "<=", TRANSPORT_WANTED),
            Figure("single_ratio", ratio, ""),
            *_milliseconds("token_ms", found),
        ]

    async def _streams(self, direct: Direct, solo: Server, split: Server) -> list[Figure]:
        figures: list[Figure] = []
        for streams, rounds in self.plan.streams.items():

            async def most(_: Random, streams: int = streams) -> float:
                curve = await direct.curve(most=streams, prompt=PROMPT, repeats=self.plan.steps)
                return best_rate(streams, curve, STAGES)

            sides: dict[str, Side] = {
                "most": most,
                "solo": partial(_rate, solo, streams),
                "split": partial(_rate, split, streams),
            }
            found = await self.turns.rounds(f"{streams} streams", sides, rounds)
            figures += _stream_figures(streams, found)
        return figures

    async def _prefill(self, solo: Server, split: Server) -> Sequence[Figure]:
        sides: dict[str, Side] = {
            "solo": partial(_prefill_rate, solo),
            "split": partial(_prefill_rate, split),
        }
        found = await self.turns.rounds(f"prompt of {LONG}", sides, self.plan.prefills)
        ratio = _median(found, lambda one: one["split"] / one["solo"])
        return [
            Figure("prefill_ratio", ratio, "", ">=", PREFILL_WANTED),
            *_rates(f"prefill_rate_{LONG}", found),
        ]

    async def large(self, model: Path) -> Sequence[Figure]:
        """One stream, beside what llama.cpp's RPC makes of it."""
        terms = Terms(model, 1, FEW, ONE)
        rpc_server = await build(self.cache, self.turns.say, "ggml-rpc-server")
        bench = await build(self.cache, self.turns.say, "llama-bench")
        async with (
            solo_node(self.folder, terms) as solo,
            split_nodes(self.folder, terms, cuts=halves(LARGE)) as split,
            run_rpc(rpc_server, self.folder / "rpc.log") as address,
        ):
            # The second half's layers and the output, as our second stage has them.
            there = ("--rpc", address, "--n-gpu-layers", str(LARGE.layers // 2 + 1))
            sides: dict[str, Side] = {
                "solo": partial(_rate, solo, 1, answer=LARGE_ANSWER),
                "split": partial(_rate, split, 1, answer=LARGE_ANSWER),
                "theirs_solo": lambda _: bench_rate(bench, model, LARGE_ANSWER),
                "theirs_split": lambda _: bench_rate(bench, model, LARGE_ANSWER, *there),
            }
            return _single_figures(await self.turns.rounds("1b", sides, self.plan.singles))

    async def law(self, model: Path) -> list[Figure]:
        """Nodes that are as far apart as the cable makes them."""
        told, draft = told_models(self.folder, model)
        terms = Terms(told, 1, FEW, ONE)
        figures: list[Figure] = []
        async with run_engines(terms, self.folder) as direct:
            for trip in self.plan.round_trips:
                figures += await self._far(direct, terms, trip, None)
                figures += await self._far(direct, terms, trip, draft)
        return figures

    async def _far(
        self, direct: Direct, terms: Terms, trip: int, draft: Path | None
    ) -> Sequence[Figure]:
        guessing = () if draft is None else ("--draft", str(draft))
        rows = 1 if draft is None else WINDOW

        async def compute(_: Random, rest: float = trip / 2e3) -> float:
            if draft is None:
                return await direct.decode(prompt=PROMPT, answer=ANSWER, rest=rest)
            repeats = ANSWER // rows
            found = await direct.window(rows=rows, prompt=PROMPT, repeats=repeats, rest=rest)
            return found / rows

        async def ping(_: Random) -> float:
            return statistics.median([await cable.round_trip() for _ in range(PINGS)])

        async with (
            open_cable(delay=trip / 2e3) as cable,
            split_nodes(self.folder, terms, *guessing, cuts=halves(SHAPE), cable=cable) as split,
        ):
            await _token_seconds(split, ANSWER, Random())  # it learns what a guess is worth
            sides: dict[str, Side] = {
                "compute": compute,
                "unrested": partial(compute, rest=0.0),
                "split": partial(_token_seconds, split, ANSWER),
                "trip": ping,
            }
            what = f"{trip} ms away{', guessing' if draft else ''}"
            found = await self.turns.rounds(what, sides, self.plan.laws)
        guessed = "" if draft is None else "draft_"
        return [
            overhead(trip, rows, found),
            *_milliseconds(f"{guessed}token_ms_rtt{trip}", found),
        ]


def overhead(trip: int, window: int, found: Sequence[Round]) -> Figure:
    """What is left of a token's time when computation and its share of the round trip, which
    brings a window of tokens, are taken away. The round trip is that of the cable, as measured
    between the runs: its timers are a millisecond coarse.
    """
    spent = _median(found, lambda one: one["split"] - one["compute"] - one["trip"] / window)
    extra = spent * 1e3
    if window == 1:
        return Figure(f"overhead_ms_rtt{trip}", extra, "ms", "<=", OVERHEAD_WANTED)
    return Figure(f"draft_overhead_ms_rtt{trip}", extra, "ms", "<=", DRAFT_WANTED)


def halves(shape: Shape) -> tuple[int, int, int]:
    return 0, shape.layers // 2, shape.layers


async def _token_seconds(server: Server, answer: int, random: Random) -> float:
    """Of one stream."""
    found = await speed(server, [completion(random, PROMPT, answer)])
    return 1 / found.rate


async def _rate(server: Server, streams: int, random: Random, *, answer: int = ANSWER) -> float:
    bodies = [completion(random, PROMPT, answer) for _ in range(streams)]
    return (await speed(server, bodies)).rate


async def _prefill_rate(server: Server, random: Random) -> float:
    return await prefill_rate(server, completion(random, LONG, 1))


def _median(found: Sequence[Round], of: Callable[[Round], float]) -> float:
    return statistics.median(map(of, found))


def _milliseconds(name: str, found: Sequence[Round]) -> Iterator[Figure]:
    for side in found[0]:
        yield Figure(f"{side}_{name}", _median(found, itemgetter(side)) * 1e3, "ms")


def _rates(name: str, found: Sequence[Round]) -> Iterator[Figure]:
    for side in found[0]:
        yield Figure(f"{side}_{name}", _median(found, itemgetter(side)), "tok/s")


def _stream_figures(streams: int, found: Sequence[Round]) -> Iterator[Figure]:
    efficiency = _median(found, lambda one: one["split"] / one["most"])
    total = _median(found, lambda one: one["split"] / one["solo"])
    yield Figure(f"pipeline_efficiency_{streams}", efficiency, "", ">=", EFFICIENCY_WANTED)
    wanted = TOTAL_WANTED.get(streams)
    if wanted is None:
        yield Figure(f"total_ratio_{streams}", total, "")
    else:
        yield Figure(f"total_ratio_{streams}", total, "", ">=", wanted)
    yield from _rates(f"rate_{streams}", found)


def _single_figures(found: Sequence[Round]) -> Sequence[Figure]:
    ours = _median(found, lambda one: one["split"] / one["solo"])
    theirs = _median(found, lambda one: one["theirs_split"] / one["theirs_solo"])
    return [
        Figure("single_ratio_1b", ours, "", ">=", SINGLE_WANTED),
        Figure("rpc_single_ratio_1b", theirs, ""),
        Figure("single_over_rpc_1b", ours / theirs, "", ">=", 1.0),
        *_rates("rate_1b", found),
    ]


def _memory_figure(direct: Direct) -> Figure:
    """Of the larger half."""
    share = max(direct.memory["stages"]) / direct.memory["whole"]
    return Figure("stage_memory_ratio", share, "", "<=", MEMORY_WANTED)
