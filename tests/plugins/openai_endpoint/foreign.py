"""A foreign server in memory, which replies what a test wrote down."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import trio

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest
from p2p_mesh.settings import Endpoint

ENDPOINT = Endpoint("http://foreign:8080")
Part = bytes | Exception | trio.Event
"""Bytes to send, an error to break off with, an event to wait for."""
MODELS = {"data": [{"id": "m", "owned_by": "other"}]}
REFUSED = httpx.ConnectError("refused")


class Parts(httpx.AsyncByteStream):
    """A body in parts."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self.closed = trio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            await trio.lowlevel.checkpoint()
            if isinstance(part, trio.Event):
                await part.wait()
            elif isinstance(part, Exception):
                raise part
            else:
                yield part

    async def aclose(self) -> None:
        self.closed.set()


class Foreign(httpx.AsyncBaseTransport):
    """Replies by path: an error, a status with a body, JSON, or the parts of a stream."""

    def __init__(self, **replies: Any) -> None:
        self.replies: dict[str, Any] = {"/v1/models": MODELS, **replies}
        self.requests: list[httpx.Request] = []
        self.streams: list[Parts] = []

    def bodies(self, path: str) -> list[Any]:
        return [json.loads(one.content) for one in self.requests if one.url.path == path]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        match self.replies.get(request.url.path, (404, {"error": {"message": "no such path"}})):
            case Exception() as error:
                raise error
            case trio.Event() as event:
                await event.wait()
                return httpx.Response(200)
            case (int() as status, body):
                return self._streamed(status, [json.dumps(body).encode()])
            case [*parts]:
                return self._streamed(200, parts)
            case body:
                return self._streamed(200, [json.dumps(body).encode()])

    def _streamed(self, status: int, parts: Sequence[Part]) -> httpx.Response:
        self.streams.append(Parts(parts))
        return httpx.Response(status, stream=self.streams[-1])


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def said(content: str, **choice: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": content}, **choice}])


def ended(reason: str = "stop") -> bytes:
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def chat(text: str = "hello", **fields: Any) -> InferenceRequest:
    prompt = ChatPrompt(messages=({"role": "user", "content": text},))
    given = {"id": RequestId("r"), "model": ModelId("m"), "prompt": prompt, **fields}
    return InferenceRequest(**given)
