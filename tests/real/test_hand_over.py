"""A trained mixture of experts on two nodes, each with a half of its experts: a conversation goes
to the node whose half its prompt needs, and stays there.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from p2p_mesh.core.experts.layout import layout
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking, encode_ranking, file_name
from p2p_mesh.core.names import Digest
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.serve.store import read
from p2p_mesh.testing.cluster import NodeProcess, start_node
from tests.real.shared import tight

DEMO = Path(__file__).parents[1] / "models" / "demo-moe.gguf"
EXPERTS, KEPT, CONTEXT = 32, 16, 512
WAYS = ("--shards", "--min-mass", "0.4", "--ctx", str(CONTEXT), "--parallel", "2", "--threads", "1")
SUMS = [f"{one} + {one + 8} = ? {one} * 8 = ? {4 * one} - 42 = ? " * 3 for one in range(17, 47, 2)]
"""The shards differ most in these. Where a conversation begins is up to the names of the nodes."""
TEXTS = [
    "Who lives in the lighthouse of Tidewick, and what do they do all day long?",
    "The harbour master counts the boats in the morning and again at night.",
    "Write me a short letter to the baker of Tidewick.",
]


def ranking(model: Path, digest: Digest) -> bytes:
    """By which the experts are used ever less, a little, so that each node has every other."""
    found = layout(read_source(model).header)
    assert found is not None
    counts = tuple(1000 - expert for expert in range(EXPERTS))
    layers = tuple(
        LayerRanking(layer=number, counts=counts, masses=tuple(map(float, counts)))
        for number in found.numbers
    )
    return encode_ranking(
        Ranking(model=digest, tokens=1000, experts=EXPERTS, used=found.used, layers=layers)
    )


@asynccontextmanager
async def halves(folder: Path) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    model = read(DEMO)
    digest = Digest(hashlib.sha256(await trio.Path(DEMO).read_bytes()).hexdigest())
    caches = {name: {"XDG_CACHE_HOME": str(folder / name / "cache")} for name in "ab"}
    kept = trio.Path(folder / "a" / "cache" / "meshnode" / "rankings")
    await kept.mkdir(parents=True)
    await (kept / file_name(digest)).write_bytes(ranking(DEMO, digest))
    room = tight(Load(model, context=CONTEXT, slots=2), (KEPT + 2) / EXPERTS)
    ways = (*WAYS, "--max-memory", room, "--model", str(DEMO))
    async with start_node(folder / "a", "--name", "a", *ways, environment=caches["a"]) as first:
        invite = (await first.wait("ready"))["invite"]
        async with start_node(
            folder / "b", "--name", "b", "--join", invite, *ways, environment=caches["b"]
        ) as second:
            for node in (first, second):
                await node.wait("model_ready", 60)
            yield first, second


async def say(node: NodeProcess, *messages: str) -> Any:
    roles = ("user", "assistant")
    said = [{"role": roles[place % 2], "content": text} for place, text in enumerate(messages)]
    question = {"model": DEMO.stem, "messages": said, "temperature": 0, "max_tokens": 12}
    async with httpx.AsyncClient(timeout=30) as client:
        answered = await client.post(f"{node.url()}/v1/chat/completions", json=question)
    assert answered.status_code == 200, answered.text
    return answered.json()


def handed(node: NodeProcess) -> list[dict[str, Any]]:
    return [line for line in node.log if line["event"] == "answer_handed_over"]


async def both_known(node: NodeProcess) -> None:
    with trio.fail_after(30):
        async with httpx.AsyncClient(timeout=30) as client:
            while True:
                (found,) = (await client.get(f"{node.url()}/v1/models")).json()["data"]
                if found["meshnode"]["shards"] == 2:
                    return
                await trio.sleep(0.1)


async def test_conversations_go_to_the_shard_that_they_need_and_stay(tmp_path: Path) -> None:
    async with halves(tmp_path) as (first, _):
        await both_known(first)
        moved = []
        for question in (*SUMS, *TEXTS):
            before = len(handed(first))
            begun = await say(first, question)
            text = begun["choices"][0]["message"]["content"]
            after = len(handed(first))
            if after > before:
                moved.append(question)
            on = await say(first, question, text, "Tell me more about that, please.")
            assert len(handed(first)) == after, "a conversation is handed over once"
            cached = on["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached > begun["usage"]["prompt_tokens"] / 2, "it goes on where it was read"
        assert moved
        assert len(moved) < len(SUMS) + len(TEXTS)
        names = {line["to"] for line in handed(first)} | {line["peer"] for line in handed(first)}
        assert len(names) == 2
        assert not [line for line in first.log if line["event"] == "answer_failed"]
