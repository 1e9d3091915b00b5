#!/usr/bin/env python
"""Proves that a node loses nothing: requests of every kind and length, many of them cancelled.

After the first of them and after all of them the node is left alone, and looked at: slots, memory
of the engine, processes, open files. Then every slot must answer once more. A tenth as many go to a
second node, whose model drafts for itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import psutil
import trio
from benches.figures import Figure
from proofs import main

from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.models import Shape, write_model

SLOTS, CONTEXT = 16, 2048
SHAPE = Shape(vocabulary=2048, context=CONTEXT)
FIRST = 100
"""Requests after which it is looked at for the first time."""
CANCELLED = 0.3
GROWTH = 2.0
"""Per cent that memory may grow."""
PATIENCE = 120.0
"""Seconds that one answer, or a node to come to rest, may take."""
MODEL = "soak"
DRAFTED = 10
"""Of so many requests one more goes to a node with a draft."""

Body = dict[str, Any]

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
IMPOSSIBLE = {
    "type": "json_schema",
    "json_schema": {"name": "none", "schema": {"type": "integer", "minimum": 5, "maximum": 3}},
}
"""No answer is one, so the request must be refused."""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["here", "there"]}},
            "required": ["place"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Look:
    """A node at rest."""

    engine: int
    """Its process id."""
    active: int
    memory: int
    """Bytes of the engine process that are in RAM."""
    processes: int
    files: int
    """Of the node and its engine."""

    def leaks(self, before: Look) -> int:
        """Things that are there now and were not."""
        ours = self.active, self.processes, self.files, self.engine != before.engine
        theirs = 0, before.processes, before.files, 0
        return sum(max(0, now - then) for now, then in zip(ours, theirs, strict=True))


class Soak:
    """The requests to one node, and what became of them."""

    def __init__(self, node: NodeProcess, random: Random) -> None:
        self._node, self._random = node, random
        self._base, self._console = node.url(), node.url("console")
        self.came: Counter[str] = Counter()
        self.failures: list[str] = []

    async def ask(self, bodies: Iterable[tuple[str, Body]]) -> None:
        """All of them, as many at a time as there are slots."""
        waiting = iter(bodies)
        async with (
            httpx.AsyncClient(base_url=self._base, timeout=PATIENCE) as client,
            trio.open_nursery() as nursery,
        ):
            for _ in range(SLOTS):
                nursery.start_soon(self._work, client, waiting)

    async def _work(self, client: httpx.AsyncClient, waiting: Iterable[tuple[str, Body]]) -> None:
        for path, body in waiting:
            seconds = self._random.uniform(0, 1) ** 3 if self._random.random() < CANCELLED else None
            with trio.move_on_after(seconds or PATIENCE) as scope:
                try:
                    await self._one(client, path, body)
                except httpx.HTTPError as error:
                    self._fail(path, body, repr(error))
            if scope.cancelled_caught and seconds is None:
                self._fail(path, body, f"no end in {PATIENCE:g} seconds")
            self.came["cancelled" if scope.cancelled_caught else "answered"] += 1

    async def _one(self, client: httpx.AsyncClient, path: str, body: Body) -> None:
        async with client.stream("POST", path, json=body) as response:
            text = await response.aread()
        wanted = 400 if body.get("response_format") == IMPOSSIBLE else 200
        if response.status_code != wanted:
            self._fail(path, body, f"{response.status_code} {text[:300]!r}")
        elif wanted == 200 and body.get("stream") and not text.rstrip().endswith(b"data: [DONE]"):
            self._fail(path, body, f"a stream that ends with {text[-200:]!r}")

    def _fail(self, path: str, body: Body, how: str) -> None:
        self.failures.append(f"{path} {json.dumps(body)[:200]}: {how}")

    async def rest(self, before: Look | None = None) -> Look:
        """A look at the node when nothing is active; sockets may take a moment to close."""
        look = await self._look()
        for _ in range(100):
            if not look.active and not (before and look.leaks(before)):
                break
            await trio.sleep(0.2)
            look = await self._look()
        return look

    async def wait_ready(self) -> None:
        """Raises RuntimeError where the model fails, TooSlowError where it takes too long."""
        with trio.fail_after(PATIENCE):
            while (model := await self._model())["state"] != "ready":
                if model["error"]:
                    raise RuntimeError(model["error"])
                await trio.sleep(0.2)

    async def _model(self) -> dict[str, Any]:
        status = await trio.to_thread.run_sync(_read, f"{self._console}/api/status")
        return next(one for one in status["models"] if one["id"] == MODEL)

    async def _look(self) -> Look:
        await self.wait_ready()
        model = await self._model()
        node, engine = psutil.Process(self._node.pid), psutil.Process(model["engine_pid"])
        return Look(
            engine=engine.pid,
            active=model["active"] + model["queued"],
            memory=engine.memory_info().rss,
            processes=len(node.children(recursive=True)),
            files=node.num_fds() + engine.num_fds(),
        )


async def prove(requests: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{MODEL}.gguf"
        write_model(path, shape=SHAPE, endless=True)
        soak, first, last = await _node(Path(folder) / "node", path, requests)
        drafted, before, after = await _node(
            Path(folder) / "drafting", path, -(-requests // DRAFTED), "--draft", str(path)
        )
    failures = soak.failures + drafted.failures
    for failure in failures[:10]:
        print(failure, file=sys.stderr)
    return [
        Figure("soak_requests", soak.came.total(), "requests", ">=", requests),
        Figure("soak_failures", len(failures), "requests", "<=", 0),
        Figure("soak_memory_growth", (last.memory / first.memory - 1) * 100, "%", "<=", GROWTH),
        Figure("soak_leaks", last.leaks(first) + after.leaks(before), "things", "<=", 0),
    ]


async def _node(folder: Path, model: Path, requests: int, *more: str) -> tuple[Soak, Look, Look]:
    """So many requests to a node of their own, which was looked at twice."""
    random = Random(1)
    options = ("--model", str(model), "--ctx", str(CONTEXT), "--parallel", str(SLOTS), *more)
    async with start_node(folder, *options) as node:
        await node.wait("ready", PATIENCE)
        soak = Soak(node, random)
        await soak.wait_ready()
        first, last = await _soak(soak, random, requests)
    print(f"{folder.name}: {requests} requests: {dict(soak.came)}; {first} became {last}")
    return soak, first, last


async def _soak(soak: Soak, random: Random, requests: int) -> tuple[Look, Look]:
    await soak.ask(_bodies(random, min(FIRST, requests)))
    first = await soak.rest()
    await soak.ask(_bodies(random, max(0, requests - FIRST)))
    last = await soak.rest(first)
    counted = soak.came.copy()
    await soak.ask([_completion(random, max_tokens=8)] * SLOTS)
    soak.came = counted
    return first, last


def _bodies(random: Random, count: int) -> Iterable[tuple[str, Body]]:
    return (random.choice(KINDS)(random) for _ in range(count))


def _words(random: Random) -> str:
    return " ".join(f"w{random.randint(0, 1500)}" for _ in range(int(random.uniform(1, 5) ** 3)))


def _common(random: Random, more: Body) -> Body:
    usual = {
        "model": MODEL,
        "max_tokens": int(random.uniform(1, 5) ** 3),
        "temperature": random.choice((0, 0.7, 1.2)),
        "seed": random.getrandbits(31),
        "stream": random.random() < 0.5,
    }
    return usual | more


def _chat(random: Random, **more: Any) -> tuple[str, Body]:
    messages = [{"role": "user", "content": _words(random)}]
    return "/v1/chat/completions", _common(random, {"messages": messages, **more})


def _completion(random: Random, **more: Any) -> tuple[str, Body]:
    return "/v1/completions", _common(random, {"prompt": _words(random), **more})


def _schema(random: Random, **more: Any) -> tuple[str, Body]:
    wanted = {"name": "person", "schema": PERSON, "strict": True}
    return _chat(random, response_format={"type": "json_schema", "json_schema": wanted}, **more)


def _tools(random: Random) -> tuple[str, Body]:
    choice = random.choice(("auto", "required", "none"))
    return _chat(random, tools=[WEATHER], tool_choice=choice)


KINDS: tuple[Callable[[Random], tuple[str, Body]], ...] = (
    _chat,
    _completion,
    _schema,
    _tools,
    partial(_chat, n=2),
    partial(_completion, n=2),
    partial(_chat, stop=["w1", "the", "\n"]),
    partial(_completion, stop="w"),
    partial(_chat, logprobs=True, top_logprobs=5),
    partial(_completion, logprobs=3, echo=True),
    partial(_chat, response_format={"type": "json_object"}),
    partial(_schema, n=2),
    partial(_chat, response_format=IMPOSSIBLE),
    partial(_completion, presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"300": 5}),
)


def _read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main(__doc__, "requests", 2000, prove))
