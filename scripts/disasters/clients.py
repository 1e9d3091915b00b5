"""A client that reads a streamed answer as it comes, and keeps what was said and when.

One process is all the clients of the mesh, beside the nodes on the same cores: so it takes no HTTP
library, and reads no more of an event than what was said.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import trio
from disasters.questions import Question

SILENCE = 40.0
"""Seconds without an event after which an answer counts as lost."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where a node is asked."""

    name: str
    host: str
    port: int
    key: str


@dataclass(frozen=True, slots=True)
class Said:
    """What must be the same in both runs; how it was cut into events is nobody's business."""

    text: str
    calls: tuple[tuple[str, str], ...]
    finish: str | None

    def __str__(self) -> str:
        return "".join((self.text, *(f"{name}({given})" for name, given in self.calls)))


@dataclass(slots=True)
class Answer:
    """One answer as a client saw it; times are of the wall clock, as those of the logs."""

    question: Question
    door: str
    start: float
    times: list[float] = field(default_factory=list)
    """When something was said."""
    error: str = ""
    """Why it is lost; empty where it came to its end."""
    end: float = 0.0
    _text: list[str] = field(default_factory=list)
    _calls: dict[int, list[str]] = field(default_factory=dict)
    _finish: str | None = None

    @property
    def said(self) -> Said:
        calls = tuple((one[0], "".join(one[1:])) for _, one in sorted(self._calls.items()))
        return Said("".join(self._text), calls, self._finish)

    def take(self, event: dict[str, Any], now: float) -> None:
        """Adds an event. Raises LookupError where it is an error, or none of an answer."""
        if "error" in event:
            raise LookupError(f"an error event: {json.dumps(event['error'])[:500]}")
        for choice in event["choices"]:
            delta = choice.get("delta") or {"content": choice.get("text")}
            before = len(self._text), len(self._calls)
            self._grow(delta)
            if delta.get("tool_calls") or before != (len(self._text), len(self._calls)):
                self.times.append(now)
            if choice.get("finish_reason"):
                self._finish = choice["finish_reason"]
                self.times.append(now)

    def _grow(self, delta: dict[str, Any]) -> None:
        if content := delta.get("content"):
            self._text.append(content)
        for call in delta.get("tool_calls") or ():
            function = call.get("function", {})
            held = self._calls.setdefault(call["index"], [function.get("name", "")])
            held.append(function.get("arguments") or "")


async def ask(door: Door, question: Question) -> Answer:
    """The answer, whatever became of it."""
    answer = Answer(question, door.name, time.time())
    try:
        await _read(door, answer)
        if answer.said.finish is None:
            answer.error = "an end without a finish_reason"
    except (OSError, trio.BrokenResourceError, LookupError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    except trio.TooSlowError:
        answer.error = f"nothing came for {SILENCE:g} seconds"
    answer.end = time.time()
    return answer


async def _read(door: Door, answer: Answer) -> None:
    with trio.fail_after(SILENCE):
        stream = await trio.open_tcp_stream(door.host, door.port)
    async with stream, aclosing(_lines(stream)) as lines:
        await stream.send_all(_request(door, answer.question))
        status = b""
        async for line in lines:
            status = status or line
            if line.startswith(b"data: {"):
                answer.take(json.loads(line[6:]), time.time())
            elif line == b"data: [DONE]":
                return
            elif b" 200 " not in status and line.startswith(b"{"):
                raise LookupError(f"{status.decode()}: {line.decode()[:500]}")
    raise LookupError(f"{status.decode()}: it broke off")


async def _lines(stream: trio.SocketStream) -> AsyncGenerator[bytes, None]:
    held = b""
    while True:
        with trio.fail_after(SILENCE):
            chunk = await stream.receive_some()
        if not chunk:
            break
        *lines, held = (held + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
    if held:
        yield held  # the body of an error has no line's end


def _request(door: Door, question: Question) -> bytes:
    body = json.dumps(question.body).encode()
    head = (
        f"POST {question.path} HTTP/1.1\r\nHost: {door.host}:{door.port}\r\n"
        f"Authorization: Bearer {door.key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
