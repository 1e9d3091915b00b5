"""A mixture of experts whose experts are read from the disk, against the same model that llama.cpp
maps, and against the most that a cache of that size allows.

The models are random, 1.3 GB each (moe.py): one that routes evenly, and one whose router favours a
fifth of its experts. Engines are processes as a node starts them, without nodes. The memory of one
is limited by a cgroup, and what was left of the file in memory is dropped before it is opened. What
is wanted stands here; the answers are asked for in written.py, memory is looked after in limits.py.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, get_args

import moe
import numpy as np
import trio
from figures import Figure
from limits import Group, Samples, drop_caches, group
from meshnode_flash_moe.backend import FlashMoe
from meshnode_flash_moe.reader import measure as measure_disk
from meshnode_llama_cpp.backend import LlamaCpp
from pairs import Turns
from traces import Trace, bound, choices, concentration, misses
from written import PROMPT, USUAL, Answer, Terms, write

from p2p_mesh.serve.backend import Backend, Engine, Load
from p2p_mesh.serve.store import read
from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.mesh import NoMesh

PROGRAM = Path(__file__).with_name("routed.py")
CONTEXT, THREADS = 512, 2
DISK_SECONDS = 2.0
"""For which the disk is measured each time."""

HALF_WANTED, THIRD_WANTED = 10.0, 8.0
BOUND_WANTED, PLAIN_WANTED = 0.7, 0.9


@dataclass(frozen=True)
class Plan:
    """How many rounds of each measurement."""

    halves: int = 2
    thirds: int = 1
    unlimited: int = 3
    terms: Terms = USUAL
    tries: int = 3


FULL = Plan()
QUICK = Plan(halves=1, unlimited=1, terms=Terms(count=64, seconds=15.0), tries=1)


@dataclass(frozen=True, slots=True)
class Cold:
    """An answer under a limit; when the engine was opened, nothing of its file was in memory."""

    answer: Answer
    rate: float
    held: int
    """The most bytes that it took for the model at one time."""
    bandwidth: float = 0.0
    """Bytes a second of the disk, afterwards."""


Round = Mapping[str, Cold]


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns, cache, shape = Turns(plan.tries), cache_dir() / "bench", moe.Shape()
    cache.mkdir(parents=True, exist_ok=True)
    figures: list[Figure] = []
    for routing in get_args(moe.Routing):
        write_model = partial(moe.model, cache, turns.say, routing, shape)
        path = await trio.to_thread.run_sync(write_model)
        figures += await Bench(turns, plan, path, shape).measure(routing)
    return figures


@dataclass(frozen=True)
class Bench:
    turns: Turns
    plan: Plan
    path: Path
    shape: moe.Shape

    async def measure(self, routing: str) -> list[Figure]:
        size = self.path.stat().st_size
        plain, flash = await self._unlimited(size)
        text = plain[0].tokens
        trace = await self._trace(text)
        halves = await self._rounds("half", size // 2, self.plan.halves)
        thirds = await self._rounds("third", size // 3, self.plan.thirds)
        self.turns.say("half, held to by nothing but itself")
        alone = await self._cold(FlashMoe(), size // 2, None, Random())
        found = Found(self.shape, self.plan.terms, trace, plain=plain, flash=flash)
        ours = [one["flash"] for one in (*halves, *thirds)]
        taken = [(one["flash"].held, size // 2) for one in halves]
        taken += [(one["flash"].held, size // 3) for one in thirds]
        answers = [*flash, alone.answer, *(one.answer for one in ours)]
        figures = [
            *found.half(halves),
            *found.third(thirds),
            *found.unlimited(),
            _held([*taken, (alone.held, size // 2)]),
            Figure("tokens_identical", are_alike(text, answers), "", ">=", 1),
            found.favoured(),
        ]
        return [_named(one, routing) for one in figures]

    async def _unlimited(self, size: int) -> tuple[list[Answer], list[Answer]]:
        """Answers of both engines with memory for all of it, each warmed by one that is not
        counted.
        """
        terms = self.plan.terms
        async with (
            self._opened(LlamaCpp(), None) as plain,
            self._opened(FlashMoe(), 2 * size) as flash,
        ):
            sides: dict[str, Callable[[Random], Any]] = {
                "plain": lambda _: write(plain, terms),
                "flash": lambda _: write(flash, terms),
            }
            await self.turns.rounds("no limit, not counted", sides, 1)
            found = await self.turns.rounds("no limit", sides, self.plan.unlimited)
        return [one["plain"] for one in found], [one["flash"] for one in found]

    async def _rounds(self, what: str, limit: int, times: int) -> list[dict[str, Cold]]:
        sides = {
            "flash": partial(self._cold, FlashMoe(), limit, limit),
            "mmap": partial(self._cold, LlamaCpp(), None, limit),
        }
        return await self.turns.rounds(what, sides, times)

    async def _cold(
        self, backend: Backend, memory: int | None, limit: int | None, _: Random
    ) -> Cold:
        """`memory`: what the engine is told that it may take; `limit`: what it can take."""
        await drop_caches()
        with group(limit) as limited:
            samples = Samples(self.path, limited)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(samples.watch)
                async with self._opened(backend, memory, limited) as engine:
                    answer = await write(engine, self.plan.terms)
                nursery.cancel_scope.cancel()
        bandwidth = await self._bandwidth() if memory else 0.0
        return Cold(answer, answer.rate(self.plan.terms), samples.most, bandwidth)

    @asynccontextmanager
    async def _opened(
        self, backend: Backend, memory: int | None, limited: Group | None = None
    ) -> AsyncIterator[Engine]:
        model = await trio.to_thread.run_sync(read, self.path)
        load = Load(model, context=CONTEXT, slots=1, threads=THREADS, memory_limit=memory,
                    speculation=False)  # fmt: skip
        async with AsyncExitStack() as stack:
            with limited.joined() if limited else nullcontext():
                engine = await stack.enter_async_context(backend.open(load, NoMesh()))
            yield engine

    async def _bandwidth(self) -> float:
        """Bytes a second that the disk gives to the engine's reader: parts of an expert's size from
        random places, as many at a time as is best.
        """
        part = self.shape.expert_bytes // 3
        find = partial(measure_disk, self.path, size=part, seconds=DISK_SECONDS)
        _, rate = await trio.to_thread.run_sync(find)
        return rate

    async def _trace(self, text: Sequence[int]) -> Trace:
        """Which experts are chosen for the prompt and a text after it."""
        with tempfile.NamedTemporaryFile(suffix=".npy") as file:
            command = [
                sys.executable,
                str(PROGRAM),
                str(self.path),
                str(self.shape.used),
                file.name,
            ]
            tokens = json.dumps([*PROMPT, *text]).encode()
            await trio.run_process(command, stdin=tokens, capture_stderr=True)
            trace: Trace = np.load(file.name).tolist()
        return trace


@dataclass(frozen=True)
class Found:
    """What was measured of one model, and what follows from it."""

    shape: moe.Shape
    terms: Terms
    trace: Trace
    plain: Sequence[Answer]
    flash: Sequence[Answer]
    """Both without a limit."""

    def half(self, rounds: Sequence[Round]) -> list[Figure]:
        reached = statistics.median(one["flash"].rate / self._bound(one["flash"]) for one in rounds)
        hits = statistics.median(one["flash"].answer.hit_rate(self.terms) for one in rounds)
        most = statistics.median(self._bound(one["flash"]) for one in rounds)
        disk = statistics.median(one["flash"].bandwidth for one in rounds)
        lru = statistics.median(1 - self._missed(one["flash"]) for one in rounds)
        return [
            Figure("flash_over_mmap_half", _over_mmap(rounds), "", ">=", HALF_WANTED),
            Figure("flash_over_bound_half", reached, "", ">=", BOUND_WANTED),
            Figure("hit_rate_half", hits, ""),
            Figure("lru_hit_rate_half", lru, ""),
            *_rates("half", rounds),
            Figure("bound_rate_half", most, "tok/s"),
            Figure("disk_bandwidth", disk / 1e6, "MB/s"),
        ]

    def third(self, rounds: Sequence[Round]) -> list[Figure]:
        return [
            Figure("flash_over_mmap_third", _over_mmap(rounds), "", ">=", THIRD_WANTED),
            *_rates("third", rounds),
        ]

    def unlimited(self) -> list[Figure]:
        pairs = zip(self.flash, self.plain, strict=True)
        over = statistics.median(one.rate(self.terms) / other.rate(self.terms)
                                 for one, other in pairs)  # fmt: skip
        return [
            Figure("flash_over_plain", over, "", ">=", PLAIN_WANTED),
            Figure("flash_rate", self._rate(self.flash), "tok/s"),
            Figure("plain_rate", self._rate(self.plain), "tok/s"),
        ]

    def favoured(self) -> Figure:
        return Figure("favoured_share", concentration(self.trace, self.shape.favoured), "")

    def _rate(self, answers: Sequence[Answer]) -> float:
        return statistics.median(one.rate(self.terms) for one in answers)

    def _bound(self, cold: Cold) -> float:
        """Tokens a second at best, with as much memory for experts as the engine had."""
        counted = len(cold.answer.times) - cold.answer.began(self.terms)
        bytes_read = self._missed(cold) * self._chosen(cold) * self.shape.expert_bytes
        compute = 1 / self._rate(self.plain)
        return bound(counted, read=bytes_read, bandwidth=cold.bandwidth, compute=compute)

    def _missed(self, cold: Cold) -> float:
        """The share of the chosen experts that an LRU cache of the engine's size would read."""
        capacity = int(cold.answer.cache) // self.shape.expert_bytes
        rows, start = self._counted(cold.answer)
        return misses(rows, capacity, start) / self._chosen(cold)

    def _chosen(self, cold: Cold) -> int:
        return choices(*self._counted(cold.answer))

    def _counted(self, answer: Answer) -> tuple[Trace, int]:
        """The rows up to the last token of an answer, and the first that counts. A row gives the
        token after it.
        """
        before = len(PROMPT) - 1
        return self.trace[: before + len(answer.times)], before + answer.began(self.terms)


def _over_mmap(rounds: Sequence[Round]) -> float:
    return statistics.median(one["flash"].rate / one["mmap"].rate for one in rounds)


def _rates(limit: str, rounds: Sequence[Round]) -> list[Figure]:
    return [Figure(f"{side}_rate_{limit}", statistics.median(one[side].rate for one in rounds),
                   "tok/s") for side in ("flash", "mmap")]  # fmt: skip


def _held(taken: Sequence[tuple[int, int]]) -> Figure:
    """What was taken at most, over what may be, of all runs."""
    most = max(held / limit for held, limit in taken)
    return Figure("memory_held_over_limit", most, "", "<=", 1.0)


def are_alike(text: Sequence[int], answers: Sequence[Answer]) -> bool:
    """Whether answers say what that text says, as far as they go."""
    return all(one.tokens == list(text[: len(one.tokens)]) for one in answers)


def _named(figure: Figure, routing: str) -> Figure:
    return replace(figure, name=f"{figure.name}_{routing}")
