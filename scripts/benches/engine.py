"""The engine against llama.cpp's own server: the same model, threads, context and slots.

What is wanted stands here, and how much is measured for it; how, stands in load.py and pairs.py.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from figures import Figure
from load import (
    GREEDY,
    SAMPLED,
    TURN,
    Server,
    Speed,
    Stall,
    complete,
    completion,
    percentile,
    prefill_rate,
    second_turn,
    speed,
    stall,
)
from pairs import Opening, Pair, Run, Turns, ratio
from peer import Terms, build, run_server

from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.cluster import start_node
from p2p_mesh.testing.models import Shape, write_model

SHAPE = Shape(layers=12, width=1024, heads=16, kv_heads=8, feed=2816, vocabulary=32000,
              context=8192)  # fmt: skip
CONTEXT, SLOTS = 1024, 16
"""Where many short answers are written at a time."""
LONG_CONTEXT, LONG_SLOTS = 8192, 2
PROMPT, ANSWER = 64, 96
"""Tokens of a short request."""
LONG, BESIDE, USUAL = 4000, 8000, 48
"""Tokens: of a prompt, of a stream that is written meanwhile, of it before and after the prompt."""
LOADING = 120.0
"""Seconds that a node has to be ready."""

DECODE_WANTED = {1: 0.97, 4: 0.98, 16: 0.98}
FIRST_WANTED = 1.10


@dataclass(frozen=True)
class Plan:
    """How many pairs of each measurement; the first two for each number of streams."""

    greedy: Mapping[int, int]
    sampled: Mapping[int, int]
    turns: int
    stalls: int
    prefills: int
    tries: int = 3


FULL = Plan(greedy={1: 12, 4: 7, 16: 5}, sampled={1: 3, 16: 2}, turns=3, stalls=1, prefills=3)
QUICK = Plan(greedy={1: 2, 4: 2, 16: 1}, sampled={1: 1, 16: 1}, turns=1, stalls=1, prefills=1,
             tries=1)  # fmt: skip


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns, cache = Turns(plan.tries), cache_dir() / "bench"
    program = await build(cache, turns.say)
    model = random_model(cache, turns.say)
    with tempfile.TemporaryDirectory() as folder:
        short = Sides(program, Path(folder), Terms(model, threads(), CONTEXT, SLOTS))
        long = replace(short, terms=replace(short.terms, context=LONG_CONTEXT, slots=LONG_SLOTS))
        return [*await _speeds(turns, short, plan), *await _long(turns, long, plan)]


@dataclass(frozen=True)
class Sides:
    """Both servers, on the same terms."""

    program: Path
    folder: Path
    terms: Terms

    @asynccontextmanager
    async def ours(self, *flags: str) -> AsyncIterator[Server]:
        terms = self.terms
        arguments = (
            "--model", str(terms.model), "--ctx", str(terms.context),
            "--parallel", str(terms.slots), "--threads", str(terms.threads), *flags,
        )  # fmt: skip
        data_dir = Path(tempfile.mkdtemp(dir=self.folder))
        async with start_node(data_dir, *arguments) as node:
            await node.wait("ready", LOADING)
            server = Server(int(node.url().rpartition(":")[2]), terms.model.stem, node.pid)
            await self._warm(server)
            yield server

    @asynccontextmanager
    async def theirs(self) -> AsyncIterator[Server]:
        log = self.folder / "llama-server.log"
        async with run_server(self.program, self.terms, log) as server:
            await self._warm(server)
            yield server

    async def _warm(self, server: Server) -> None:
        """Every slot answers once."""
        slots = range(self.terms.slots)
        await complete(server, [completion(Random(slot), PROMPT, 4) for slot in slots])


async def _speeds(turns: Turns, sides: Sides, plan: Plan) -> Iterator[Figure]:
    """Many streams, short prompts."""
    async with turns.together(sides.ours, sides.theirs) as both:
        greedy = await _streams(turns, both, plan.greedy, GREEDY)
        sampled = await _streams(turns, both, plan.sampled, SAMPLED)
    return chain(
        _decode_figures(greedy),
        _first_figures(greedy),
        _cpu_figures(greedy),
        _sampled_figures(sampled),
        _absolute_figures(greedy),
    )


async def _streams(
    turns: Turns, both: Sequence[Opening], plan: Mapping[int, int], sampling: Mapping[str, Any]
) -> dict[int, list[Pair[Speed]]]:
    found = {}
    for streams, pairs in plan.items():
        what = f"{streams} streams, {'greedy' if sampling is GREEDY else 'sampled'}"
        found[streams] = await turns.pairs(what, both, pairs, _short(streams, sampling))
    return found


def _short(streams: int, sampling: Mapping[str, Any]) -> Run[Speed]:
    def run(server: Server, random: Random) -> Any:
        return speed(server, [completion(random, PROMPT, ANSWER, sampling) for _ in range(streams)])

    return run


async def _long(turns: Turns, sides: Sides, plan: Plan) -> Iterator[Figure]:
    """Few streams, long prompts."""
    async with turns.together(sides.ours, sides.theirs) as both:
        seconds = await turns.pairs("second turn", both, plan.turns, second_turn)
        stalls = await turns.pairs("long prompt", both, plan.stalls, _stall)
    strict = partial(sides.ours, "--deterministic")
    async with turns.together(strict, sides.ours) as both:
        rates = await turns.pairs("deterministic", both, plan.prefills, _prefill)
    return chain(_second_figures(seconds), _stall_figures(stalls), _prefill_figures(rates))


async def _stall(server: Server, random: Random) -> Stall:
    # With log-probabilities, since a token that is half a character is no event without.
    beside = {**completion(random, PROMPT, BESIDE), "logprobs": 0}
    return await stall(server, beside, completion(random, LONG, 1), USUAL)


async def _prefill(server: Server, random: Random) -> float:
    return await prefill_rate(server, completion(random, TURN, 1))


def _decode_figures(found: Mapping[int, list[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        value = ratio(pairs, lambda one: one.rate)
        yield Figure(f"decode_ratio_{streams}", value, "", ">=", DECODE_WANTED[streams])


def _first_figures(found: Mapping[int, list[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        value = ratio(pairs, lambda one: statistics.median(one.firsts))
        yield Figure(f"ttft_ratio_p50_{streams}", value, "", "<=", FIRST_WANTED)
    for streams, pairs in found.items():
        ours, theirs = (percentile(_firsts(side), 0.99) for side in zip(*pairs, strict=True))
        yield Figure(f"ttft_ratio_p99_{streams}", ours / theirs, "")


def _cpu_figures(found: Mapping[int, list[Pair[Speed]]]) -> Iterator[Figure]:
    """Over all tokens of the runs, and for each number of streams: a token that comes alone finds
    every cache emptied by the engine, and costs several times one that comes with others.
    """
    ours = {streams: [one for one, _ in pairs] for streams, pairs in found.items()}
    total = _cost([*chain.from_iterable(ours.values())], lambda one: one.front)
    yield Figure("node_cpu_ms_per_token", total, "ms", "<", 0.25)
    for streams, speeds in ours.items():
        cost = _cost(speeds, lambda one: one.front)
        yield Figure(f"node_cpu_ms_per_token_{streams}", cost, "ms")
    everybody = [one for pairs in found.values() for pair in pairs for one in pair]
    yield Figure("bench_cpu_ms_per_token", _cost(everybody, lambda one: one.reader), "ms")


def _cost(speeds: Sequence[Speed], seconds: Callable[[Speed], float]) -> float:
    """Milliseconds a token."""
    return sum(map(seconds, speeds)) / sum(one.tokens for one in speeds) * 1e3


def _sampled_figures(found: Mapping[int, list[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        yield Figure(f"sampled_decode_ratio_{streams}", ratio(pairs, lambda one: one.rate), "")


def _absolute_figures(found: Mapping[int, list[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        for name, side in zip(("", "peer_"), zip(*pairs, strict=True), strict=True):
            rate, firsts = statistics.median(one.rate for one in side), _firsts(side)
            yield Figure(f"{name}decode_rate_{streams}", rate, "tok/s")
            yield Figure(f"{name}ttft_p50_{streams}", statistics.median(firsts) * 1e3, "ms")
            yield Figure(f"{name}ttft_p99_{streams}", percentile(firsts, 0.99) * 1e3, "ms")


def _firsts(speeds: Iterable[Speed]) -> list[float]:
    return [first for one in speeds for first in one.firsts]


def _second_figures(found: Sequence[Pair[float]]) -> Iterator[Figure]:
    ours, theirs = map(statistics.median, zip(*found, strict=True))
    yield Figure("second_turn_ttft_ratio", ours, "", "<=", 0.10)
    yield Figure("peer_second_turn_ttft_ratio", theirs, "")


def _stall_figures(found: Sequence[Pair[Stall]]) -> Iterator[Figure]:
    """A median of the longest gaps: a single one may be another program's."""
    ours, theirs = zip(*found, strict=True)
    longest, theirs_longest = (statistics.median(one.ratio for one in s) for s in (ours, theirs))
    yield Figure("longest_stall_ratio", longest, "", "<=", 3.0)
    yield Figure("peer_longest_stall_ratio", theirs_longest, "")
    for name, side in (("filling_beside_s", ours), ("peer_filling_beside_s", theirs)):
        yield Figure(name, statistics.median(one.filling for one in side), "s")


def _prefill_figures(found: Sequence[Pair[float]]) -> Iterator[Figure]:
    yield Figure("deterministic_cost", ratio(found, float), "", ">=", 0.5)
    strict, usual = map(statistics.median, zip(*found, strict=True))
    yield Figure("deterministic_prefill_rate", strict, "tok/s")
    yield Figure("prefill_rate", usual, "tok/s")


def random_model(cache: Path, say: Callable[[str], None], shape: Shape = SHAPE) -> Path:
    """The random model of a shape; written where it is missing."""
    path = cache / f"random-{shape.layers}x{shape.width}x{shape.feed}.gguf"
    say(f"{path.stem}: {_parameters(shape) / 1e6:.0f} million parameters, Q8_0")
    if not path.exists():
        say("writing it, once")
        part = path.with_suffix(".part")
        write_model(part, shape=shape, endless=True)
        part.rename(path)
    return path


def _parameters(shape: Shape) -> int:
    attention = 2 * shape.width * (shape.width + shape.kv_width)
    layer = attention + 3 * shape.width * shape.feed + 2 * shape.width
    return 2 * shape.vocabulary * shape.width + shape.layers * layer + shape.width


def threads() -> int:
    """One core is left to what is no computation."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
