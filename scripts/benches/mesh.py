"""What a peer between client and engine costs: the same engine, asked through another node and
through its own.

Two real nodes on loopback, one with the random model of engine.py, one that serves nothing.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from engine import LOADING, PROMPT, random_model, threads
from figures import Figure, undisturbed
from load import Server, Speed, complete, completion, speed
from pairs import Pair, Turns, ratio

from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.cluster import start_node

CONTEXT, SLOTS = 1024, 8
ANSWER = {1: 192, 8: 96}
"""Tokens of an answer, for each number of streams."""
FIRST_PROMPT = 8
"""Tokens of a prompt whose first token is waited for: what reads longer prompts varies more."""
WARM = 4

DECODE_WANTED = 0.97
FIRST_WANTED = 3.0
CPU_WANTED = {1: 1.0, 8: 0.5}


@dataclass(frozen=True)
class Plan:
    """How many pairs of each measurement; the first for each number of streams."""

    decodes: Mapping[int, int]
    firsts: int
    tries: int = 3


FULL = Plan(decodes={1: 12, 8: 9}, firsts=60)
QUICK = Plan(decodes={1: 3, 8: 2}, firsts=20, tries=1)


@dataclass(frozen=True, slots=True)
class Through(Server):
    """A server whose answers another node writes."""

    behind: Server

    def front_seconds(self) -> float:
        """CPU of both nodes, without the engine's."""
        return Server.front_seconds(self) + self.behind.front_seconds()


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns = Turns(plan.tries)
    model = random_model(cache_dir() / "bench", turns.say)
    with tempfile.TemporaryDirectory() as folder:
        async with _nodes(Path(folder), model) as (through, direct):
            turns.say("first tokens")
            extra = await undisturbed(partial(_extra, through, direct, plan.firsts), plan.tries)
            decodes = {
                streams: await turns.pairs(
                    f"{streams} streams",
                    (partial(nullcontext, through), partial(nullcontext, direct)),
                    pairs,
                    partial(_decode, streams),
                )
                for streams, pairs in plan.decodes.items()
            }
    return [
        *_ratio_figures(decodes),
        Figure("peer_extra_ttft_ms", extra * 1e3, "ms", "<=", FIRST_WANTED),
        *_cpu_figures(decodes),
        *_absolute_figures(decodes),
    ]


@asynccontextmanager
async def _nodes(folder: Path, model: Path) -> AsyncIterator[tuple[Server, Server]]:
    """The engine through a peer, and asked directly; both are warm."""
    serve = (
        "--model", str(model), "--ctx", str(CONTEXT),
        "--parallel", str(SLOTS), "--threads", str(threads()),
    )  # fmt: skip
    async with start_node(folder / "serving", *serve) as serving:
        invite = (await serving.wait("ready", LOADING))["invite"]
        async with start_node(folder / "asking", "--client", "--join", invite) as asking:
            await asking.wait("ready", LOADING)
            direct = Server(_port(serving.url()), model.stem, serving.pid)
            through = Through(_port(asking.url()), model.stem, asking.pid, direct)
            for server in (direct, through):
                await _warm(server)
            yield through, direct


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


async def _warm(server: Server) -> None:
    """Every slot answers, and every stream between the nodes is opened."""
    await complete(server, [completion(Random(slot), PROMPT, WARM) for slot in range(SLOTS)])


async def _decode(streams: int, server: Server, random: Random) -> Speed:
    bodies = [completion(random, PROMPT, ANSWER[streams]) for _ in range(streams)]
    return await speed(server, bodies)


async def _extra(through: Server, direct: Server, pairs: int) -> float:
    """Median seconds that asking through a peer adds to the first token."""
    added = []
    for number in range(pairs):
        found = {}
        for server in (through, direct) if number % 2 else (direct, through):
            found[server] = await _first(server, Random(f"{number} {server.port}"))
        added.append(found[through] - found[direct])
    return statistics.median(added)


async def _first(server: Server, random: Random) -> float:
    (answer,) = await complete(server, [completion(random, FIRST_PROMPT, 1)])
    return answer.first


def _ratio_figures(found: Mapping[int, Sequence[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        value = ratio(pairs, lambda one: one.rate)
        yield Figure(f"peer_decode_ratio_{streams}", value, "", ">=", DECODE_WANTED)


def _cpu_figures(found: Mapping[int, Sequence[Pair[Speed]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        through, direct = (_cost(side) for side in zip(*pairs, strict=True))
        wanted = CPU_WANTED[streams]
        yield Figure(f"peer_cpu_ms_per_token_{streams}", through, "ms", "<=", wanted)
        yield Figure(f"direct_cpu_ms_per_token_{streams}", direct, "ms")


def _cost(speeds: Sequence[Speed]) -> float:
    """Milliseconds of the nodes' CPU for a token."""
    return sum(one.front for one in speeds) / sum(one.tokens for one in speeds) * 1e3


def _absolute_figures(found: Mapping[int, Sequence[Pair[Any]]]) -> Iterator[Figure]:
    for streams, pairs in found.items():
        for name, side in zip(("peer", "direct"), zip(*pairs, strict=True), strict=True):
            rate = statistics.median(one.rate for one in side)
            yield Figure(f"{name}_decode_rate_{streams}", rate, "tok/s")
