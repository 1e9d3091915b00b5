"""Proves that a model in three stages writes what it writes as one: on models of eight kinds with
eight layers and more, over real libp2p streams between three nodes.

The models are llama.cpp's own fixtures, grown (grown.py). All nodes are `--deterministic`, so that
the company of other answers changes nothing. Each text is asked of the model as one and of its
stages: first alone, then all at once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random

import trio
from figures import Figure
from grown import grow
from load import PATIENCE, Server, completion
from pairs import Turns
from peer import Terms, build
from stages import solo_node, split_nodes

from p2p_mesh.core.families import study
from p2p_mesh.core.gguf import read_header
from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.events import post_stream

FAMILIES: Mapping[str, int] = {
    "llama-dense": 4, "qwen3-dense": 4, "gemma3-dense": 4, "qwen3moe-moe": 4, "deepseek2-moe": 8,
    "gpt-oss-moe": 4, "qwen3next-moe": 4, "falcon-h1-dense": 4,
}  # fmt: skip
"""The fixtures, and how often their layers are repeated."""
STAGES = 3
CONTEXT, SLOTS = 512, 3
PROMPT, ANSWER = 40, 200
STRICT = ("--deterministic", "--no-speculation")
_HEAD = 64 << 20
"""Bytes of a file in which its header is."""


@dataclass(frozen=True)
class Plan:
    families: Sequence[str]
    texts: int


FULL = Plan(tuple(FAMILIES), texts=3)
QUICK = Plan(("llama-dense", "qwen3next-moe"), texts=1)


async def measure(plan: Plan = FULL) -> list[Figure]:
    turns, cache = Turns(tries=1), cache_dir() / "bench"
    program = await build(cache, turns.say, "test-llama-archs")
    equal, different, apart = [], [], [0.0]
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        fixtures = await make_fixtures(program, folder)
        for family in plan.families:
            model = folder / f"{family}.gguf"
            await trio.to_thread.run_sync(
                grow, fixtures / f"{family}.gguf", model, FAMILIES[family]
            )
            alone, split = await _texts(folder, model, plan.texts)
            parting = difference(alone, split)
            (different if parting else equal).append(family)
            apart.append(distance(alone, split))
            turns.say(f"{family}: {parting or 'equal'}")
    return [
        Figure("split_equal", len(equal), "", ">=", len(plan.families)),
        Figure("split_different", len(different), "", "<=", 0),
        Figure("split_logprob_difference", max(apart), ""),
    ]


async def make_fixtures(program: Path, folder: Path) -> Path:
    """A folder with llama.cpp's tiny models, one or more of each architecture."""
    fixtures = folder / "fixtures"
    fixtures.mkdir()
    with (folder / "fixtures.log").open("wb") as log:
        await trio.run_process([str(program), "-o", str(fixtures)], stdout=log, stderr=log)
    return fixtures


Said = tuple[str, float]
"""A token's text, and how likely the model held it."""


async def _texts(folder: Path, model: Path, texts: int) -> tuple[list[list[Said]], ...]:
    """What the model as one says, and what its stages say."""
    terms = Terms(model, 1, CONTEXT, SLOTS)
    async with solo_node(folder, terms, *STRICT) as solo:
        alone = await _said(solo, texts)
    async with split_nodes(folder, terms, *STRICT, cuts=cuts(model)) as split:
        return alone, await _said(split, texts)


async def _said(server: Server, texts: int) -> list[list[Said]]:
    """The answers one after the other, then at once."""
    said = [await _answer(server, number) for number in range(texts)]
    together: dict[int, list[Said]] = {}

    async def one(number: int) -> None:
        together[number] = await _answer(server, number)

    async with trio.open_nursery() as nursery:
        for number in range(texts, 2 * texts):
            nursery.start_soon(one, number)
    return [*said, *(together[number] for number in sorted(together))]


async def _answer(server: Server, number: int) -> list[Said]:
    body = {
        "model": server.model,
        "logprobs": 1,
        **completion(Random(number), PROMPT, ANSWER),
    }
    said: list[Said] = []
    with trio.fail_after(PATIENCE):
        async with post_stream(f"http://127.0.0.1:{server.port}/v1/completions", body) as events:
            while event := await events.next():
                for choice in event["choices"]:
                    if found := choice.get("logprobs"):
                        said += zip(found["tokens"], found["token_logprobs"], strict=True)
    if len(said) != ANSWER:
        raise RuntimeError(f"{len(said)} tokens instead of {ANSWER}: {events.head!r}")
    return said


def cuts(model: Path) -> tuple[int, ...]:
    """Where the stages begin, as equal as the family allows, and the number of all layers."""
    with model.open("rb") as file:
        cutting = study(read_header(file.read(_HEAD), model.stat().st_size))
    total, places = cutting.total, [0]
    for stage in range(1, STAGES):
        wanted = total * stage // STAGES
        rest = range(places[-1] + 1, total - STAGES + stage + 1)
        near = sorted(rest, key=lambda layer, wanted=wanted: abs(layer - wanted))
        places.append(next(layer for layer in near if not cutting.obstacle(places[-1], layer)))
    if why := cutting.obstacle(places[-1], total):
        raise RuntimeError(f"{model.stem} has no {STAGES} stages: {why}")
    return (*places, total)


def difference(alone: Sequence[Sequence[Said]], split: Sequence[Sequence[Said]]) -> str:
    """Where the tokens of two sets of answers part first; empty where they do not."""
    for number, (one, other) in enumerate(zip(alone, split, strict=True)):
        for place, (first, second) in enumerate(zip(one, other, strict=True)):
            if first[0] != second[0]:
                return f"answer {number}, token {place}: {first} as one, {second} in stages"
    return ""


def distance(alone: Sequence[Sequence[Said]], split: Sequence[Sequence[Said]]) -> float:
    """The largest difference of what a token's likelihood was."""
    pairs = zip(chain.from_iterable(alone), chain.from_iterable(split), strict=True)
    return max(abs(first[1] - second[1]) for first, second in pairs)
