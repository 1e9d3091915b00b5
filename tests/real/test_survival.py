"""Answers go on when what writes them dies: an engine, a node, a node that only hangs."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import trio

from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import Events, post_stream

QUESTION = {
    "model": "slow", "messages": [{"role": "user", "content": "hello"}], "seed": 3,
    "max_tokens": 400, "temperature": 2, "top_k": 0, "min_p": 0,
}  # fmt: skip
STRICT = ("--deterministic", "--threads", "1")


class Heard:
    """A streamed answer: its text, when each part came, and the error at its end."""

    def __init__(self, events: Events) -> None:
        self.text = ""
        self.times: list[float] = []
        self.error: dict[str, Any] | None = None
        self._events = events

    async def some(self, count: int) -> None:
        while len(self.times) < count:
            assert await self._one()

    async def rest(self) -> None:
        while await self._one():
            pass

    async def _one(self) -> bool:
        event = await self._events.next()
        if event is None:
            return False
        self.error = event.get("error")
        for choice in event.get("choices", ()):
            if content := choice["delta"].get("content"):
                self.text += content
                self.times.append(trio.current_time())
        return True

    @property
    def longest_gap(self) -> float:
        return max(later - earlier for earlier, later in pairwise(self.times))


@asynccontextmanager
async def asked(node: NodeProcess) -> AsyncIterator[Heard]:
    with trio.fail_after(60):
        async with post_stream(f"{node.url()}/v1/chat/completions", QUESTION) as events:
            yield Heard(events)


async def whole(node: NodeProcess) -> str:
    async with asked(node) as heard:
        await heard.rest()
    assert heard.error is None
    return heard.text


@asynccontextmanager
async def mesh(folder: Path, model: Path, servers: int) -> AsyncIterator[list[NodeProcess]]:
    """A node that asks, and those that serve; the first of these founded the mesh."""
    async with start_node(folder / "0", "--model", str(model), *STRICT) as first:
        invite = (await first.wait("ready"))["invite"]
        async with (
            _more(folder, model, invite, servers - 1) as more,
            start_node(folder / "c", "--client", "--join", invite) as client,
        ):
            await client.wait("ready")
            while sum(one["event"] == "model_offered" for one in client.log) < servers:
                await trio.sleep(0.05)
            yield [client, first, *more]


@asynccontextmanager
async def _more(
    folder: Path, model: Path, invite: str, count: int
) -> AsyncIterator[list[NodeProcess]]:
    if not count:
        yield []
        return
    arguments = ("--model", str(model), *STRICT, "--join", invite)
    async with start_node(folder / str(count), *arguments) as node:
        await node.wait("ready")
        async with _more(folder, model, invite, count - 1) as others:
            yield [node, *others]


async def _trusts_all(node: NodeProcess) -> None:
    """Waits until no peer is suspect."""
    async with httpx.AsyncClient() as client:
        with trio.fail_after(30):
            while {one["state"] for one in await _peers(client, node)} != {"connected"}:
                await trio.sleep(0.05)


async def _peers(client: httpx.AsyncClient, node: NodeProcess) -> list[dict[str, Any]]:
    return list((await client.get(f"{node.url('console')}/api/status")).json()["peers"])


def serving(nodes: list[NodeProcess], before: dict[int, float]) -> NodeProcess:
    """Which of the nodes writes: the one whose engine has taken the most CPU since."""
    return max(nodes, key=lambda node: _seconds(node) - before[node.pid])


def _seconds(node: NodeProcess) -> float:
    fields = Path(f"/proc/{node.engines()[0]}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_answer_outlives_the_only_engine_and_not_the_only_node(
    tmp_path: Path, slow: Path
) -> None:
    async with mesh(tmp_path, slow, 1) as (client, node):
        right = await whole(node)
        for one in (node, client):
            async with asked(one) as heard:
                await heard.some(5)
                os.kill(node.engines()[0], signal.SIGKILL)
                await heard.rest()
            assert heard.error is None
            assert heard.text == right
        assert node.process.poll() is None
        async with asked(client) as heard:
            await heard.some(5)
            await node.stop(signal.SIGKILL)
            await heard.rest()
        assert heard.error is not None
        assert (heard.error["code"], heard.error["partial"]) == ("answer_broken_off", True)


async def test_answer_outlives_a_node_that_hangs_and_one_that_dies(
    tmp_path: Path, slow: Path
) -> None:
    async with mesh(tmp_path, slow, 2) as (client, *nodes):
        right = await whole(client)
        before = {node.pid: _seconds(node) for node in nodes}
        async with asked(client) as heard:
            await heard.some(40)
            node = serving(nodes, before)
            node.process.send_signal(signal.SIGSTOP)
            try:
                await heard.rest()
            finally:
                node.process.send_signal(signal.SIGCONT)
        assert heard.text == right
        assert heard.longest_gap < 6
        await _trusts_all(client)
        resumed = len(client.log)
        before = {node.pid: _seconds(node) for node in nodes}
        async with asked(client) as heard:
            await heard.some(40)
            await serving(nodes, before).stop(signal.SIGKILL)
            await heard.rest()
        assert heard.text == right
        assert heard.longest_gap < 2
        await client.wait("answer_resumed", after=resumed)
