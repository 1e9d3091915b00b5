"""Streams of requests to a server, and what is measured of them; whose server it is, it ignores.

The reader shares the cores with what it measures, so it does little for a token: it looks for one
pattern in what has come, and notes the time. A token without a text of its own, such as half a
character, makes no event; the server's count of tokens says for how many an event stands.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import string
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import psutil
import trio

from p2p_mesh.testing.events import post_stream

GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 1, "top_k": 40, "top_p": 0.95, "min_p": 0, "seed": 1}

PATIENCE = 600.0
"""Seconds that one measurement may take."""

TURN, NEW_TURN, REPLY = 2000, 24, 4
"""Tokens of a chat: of its first question, of its second, and of each answer. An answer is short,
since a random model's words come back as letters, a token each, which were not in the cache.
"""

_COMPLETIONS = "/v1/completions"
_TOKEN = re.compile(rb'"(?:text|content)": ?"[^"]')
_COUNT = re.compile(rb'"(prompt|completion)_tokens": ?(\d+)')
_TAIL = 8192  # bytes; the last events, in which the counts are
_OUTSIDE = 2  # tokens of a prompt beside its letters: where it begins, and a space before it


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers on loopback."""

    port: int
    model: str
    pid: int
    """Of the process that answers HTTP."""

    def front_seconds(self) -> float:
        """CPU that the process has taken, without its children."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def seconds(self) -> float:
        """CPU that it has taken with its children that live."""
        children = psutil.Process(self.pid).children(recursive=True)
        spent = [child.cpu_times() for child in children]
        return self.front_seconds() + sum(times.user + times.system for times in spent)


class Answer:
    """An answer as it streams. RuntimeError where the server gives none."""

    def __init__(self, stream: trio.SocketStream, asked_at: float) -> None:
        self._stream = stream
        self._asked_at = asked_at
        self._held = b""
        self._tail = b""
        self.times: list[float] = []
        """When each event with text came."""

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self._asked_at

    @property
    def tokens(self) -> int:
        return self._counts()["completion"]

    @property
    def prompt_tokens(self) -> int:
        return self._counts()["prompt"]

    @property
    def weight(self) -> float:
        """Tokens for which an event stands."""
        return self.tokens / len(self.times)

    async def all(self) -> None:
        while await self.more():
            pass
        if not self.times:
            raise RuntimeError(f"an answer without text: {self._tail!r}")

    async def more(self) -> bool:
        """Reads what comes next; False at the end."""
        data = await self._stream.receive_some(65_536)
        now = trio.current_time()
        text = self._held + data
        cut = text.rfind(b"\n") + 1
        whole, self._held = text[:cut], text[cut:]
        self.times += [now] * len(_TOKEN.findall(whole))
        self._tail = (self._tail + whole)[-_TAIL:]
        if b"data: [DONE]" in whole:
            return False
        if not data:
            raise RuntimeError(f"a stream broke off: {self._tail + self._held!r}")
        return True

    def _counts(self) -> dict[str, int]:
        return {name.decode(): int(count) for name, count in _COUNT.findall(self._tail)}


@asynccontextmanager
async def asked(server: Server, path: str, body: Mapping[str, Any]) -> AsyncIterator[Answer]:
    """Asks for a streamed answer; leaving the context closes the connection."""
    fixed = {"model": server.model, "stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps({**fixed, **body}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        "Connection: close\r\n\r\n"
    )
    start = trio.current_time()
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(head.encode() + raw)
        yield Answer(stream, start)


async def complete(server: Server, bodies: Sequence[Mapping[str, Any]]) -> list[Answer]:
    """The answers of /v1/completions to all of them, asked at one moment."""
    answers: list[Answer] = []

    async def one(body: Mapping[str, Any]) -> None:
        async with asked(server, _COMPLETIONS, body) as answer:
            answers.append(answer)
            await answer.all()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for body in bodies:
                nursery.start_soon(one, body)
    return answers


def completion(
    random: Random, prompt: int, answer: int, sampling: Mapping[str, Any] = GREEDY
) -> dict[str, Any]:
    """A body with a prompt of so many tokens that shares no beginning with any other."""
    return {"prompt": letters(random, prompt - _OUTSIDE), "max_tokens": answer, **sampling}


def letters(random: Random, count: int) -> str:
    """A text of so many tokens: our random models know no words of letters alone."""
    return "".join(random.choices(string.ascii_lowercase, k=count))


def decode_rate(answers: Sequence[Answer]) -> float:
    """Tokens a second while all of them are being written. RuntimeError if they never are."""
    start = max(answer.times[0] for answer in answers)
    end = min(answer.times[-1] for answer in answers)
    if end <= start:
        raise RuntimeError(f"{len(answers)} answers were never written at one time")
    tokens = sum(answer.weight * sum(start < at <= end for at in answer.times)
                 for answer in answers)  # fmt: skip
    return tokens / (end - start)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Speed:
    """What some answers at one time came to."""

    rate: float
    """Tokens a second of all of them, while all were written."""
    firsts: list[float]
    """Seconds to the first token of each."""
    tokens: int
    front: float
    """CPU seconds of the process that answers HTTP."""
    reader: float
    """CPU seconds of this process."""


async def speed(server: Server, bodies: Sequence[Mapping[str, Any]]) -> Speed:
    front, reader = server.front_seconds(), time.process_time()
    answers = await complete(server, bodies)
    return Speed(
        rate=decode_rate(answers),
        firsts=[answer.first for answer in answers],
        tokens=sum(answer.tokens for answer in answers),
        front=server.front_seconds() - front,
        reader=time.process_time() - reader,
    )


async def prefill_rate(server: Server, body: Mapping[str, Any]) -> float:
    """Tokens of a prompt that are read in a second."""
    (answer,) = await complete(server, [body])
    return answer.prompt_tokens / answer.first


@dataclass(frozen=True, slots=True)
class Stall:
    """What a long prompt did to a stream beside it."""

    ratio: float
    """The longest gap between two of its events meanwhile, over what is usual at that length."""
    filling: float
    """Seconds until the long prompt was answered."""


async def stall(
    server: Server, beside: Mapping[str, Any], long: Mapping[str, Any], usual: int
) -> Stall:
    """`long` is asked once `usual` events of the stream have come, and so many are waited for when
    it was answered: a stream's own step takes longer as it grows.
    """
    with trio.fail_after(PATIENCE):
        async with asked(server, _COMPLETIONS, beside) as stream:
            await _grown(stream, usual)
            first, start = len(stream.times), trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.all)
                (answer,) = await complete(server, [long])
                nursery.cancel_scope.cancel()
            end = start + answer.first
            last = sum(at < end for at in stream.times)
            await _grown(stream, last + 1 + usual)
    return Stall(longest_gap(stream.times[: last + 1 + usual], first, last), answer.first)


async def _grown(stream: Answer, events: int) -> None:
    while len(stream.times) < events:
        if not await stream.more():
            raise RuntimeError(f"a stream ended after {len(stream.times)} of {events} events")


def longest_gap(times: Sequence[float], first: int, last: int) -> float:
    """The longest of the gaps that end with the events `first` to `last`, each over what is usual
    there: on a line from the median of those before to the median of those after.
    """
    gaps = [later - earlier for earlier, later in pairwise(times)]
    before = statistics.median(gaps[: first - 1])
    slope = (statistics.median(gaps[last:]) - before) / max(last - first, 1)
    during = enumerate(gaps[first - 1 : last])
    return max(gap / (before + slope * at) for at, gap in during)


async def second_turn(server: Server, random: Random) -> float:
    """Seconds to the first token of a chat's second turn, over those of its first."""
    chat = [{"role": "user", "content": letters(random, TURN)}]
    first, reply = await _turn(server, chat)
    chat += [
        {"role": "assistant", "content": reply},
        {"role": "user", "content": letters(random, NEW_TURN)},
    ]
    second, _ = await _turn(server, chat)
    return second / first


async def _turn(server: Server, chat: Sequence[Mapping[str, str]]) -> tuple[float, str]:
    """Seconds to the first token of the reply, and the reply."""
    body = {"model": server.model, "messages": chat, "max_tokens": REPLY, **GREEDY}
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    start, texts = trio.current_time(), []
    with trio.fail_after(PATIENCE):
        async with post_stream(url, body) as events:
            while event := await events.next():
                grown = "".join(one["delta"].get("content") or "" for one in event["choices"])
                if grown:
                    texts.append((trio.current_time() - start, grown))
    if not texts:
        raise RuntimeError(f"a chat without an answer: {events.head!r}")
    return texts[0][0], "".join(text for _, text in texts)
