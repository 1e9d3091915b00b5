"""The operations that write: chat and completions. Which node answers is not known here.

The status of a stream is that of its first delta: no head is sent before that has come. An error
after it is an event, and then the stream ends without `[DONE]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from p2p_mesh.core.names import RequestId
from p2p_mesh.core.offers import offer
from p2p_mesh.core.records import Delta, InferenceRequest
from p2p_mesh.errors import MeshError, RemoteError
from p2p_mesh.front.batch import Answer, Grown, answers
from p2p_mesh.front.body import client, conversation, read
from p2p_mesh.front.chunks import Chunks
from p2p_mesh.front.media import Media
from p2p_mesh.front.openai import Drawn, Kind, Question, question
from p2p_mesh.front.whole import Whole
from p2p_mesh.http.application import report
from p2p_mesh.http.failure import INTERNAL, Failure, failure
from p2p_mesh.http.stream import DONE, Body, Deferred, EventStream, Outbox, event
from p2p_mesh.journal import Journal


class AnswerTo(Protocol):
    def __call__(
        self, request: InferenceRequest, client: str, conversation: str
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]: ...


_PREFIXES: dict[Kind, str] = {"chat": "chatcmpl-", "text": "cmpl-"}


@dataclass(frozen=True, slots=True)
class Answering:
    """The endpoints. `media` is None where links are not fetched."""

    answer: AnswerTo
    """To a request, to whom, and in which conversation."""
    clock: Callable[[], float]
    random: Random
    journal: Journal
    media: Media | None = None

    async def chat(self, request: Request) -> ASGIApp:
        return await self._ask("chat", request)

    async def completions(self, request: Request) -> ASGIApp:
        return await self._ask("text", request)

    async def _ask(self, kind: Kind, request: Request) -> ASGIApp:
        body = await read(request)
        asked = question(kind, body, self._draw(kind), links=self.media is not None)
        headers: dict[str, str] = {"x-request-id": asked.requests[0].id}
        answer = partial(self.answer, client=client(request, body), conversation=conversation(body))
        if asked.stream:
            return EventStream(partial(self._stream, asked, request, answer), headers)
        return Deferred(partial(self._whole, asked, answer, headers))

    def _draw(self, kind: Kind) -> Drawn:
        return Drawn(
            id=RequestId(f"{_PREFIXES[kind]}{self.random.getrandbits(128):032x}"),
            seed=self.random.getrandbits(63),
            asked_at=int(self.clock()),
        )

    async def _fetched(self, asked: Question) -> Question:
        return asked if self.media is None else await self.media.fetched(asked)

    async def _whole(self, asked: Question, answer: Answer, headers: dict[str, str]) -> Response:
        asked = await self._fetched(asked)
        whole = Whole(asked)
        try:
            async with answers(answer, asked.requests) as grown:
                async for prompt, delta in grown:
                    whole.take(delta, prompt)
        except MeshError as error:
            return failure(error, whole.partial() or None).response()
        return JSONResponse(whole.body(), headers=headers)

    async def _stream(self, asked: Question, request: Request, answer: Answer, body: Body) -> None:
        asked = await self._fetched(asked)
        chunks = Chunks(asked)
        async with answers(answer, asked.requests) as grown:
            try:
                prompt, first = await anext(grown)
            except StopAsyncIteration:
                raise RemoteError("the answer ended before it began") from None
            begun = chunks.grown(first, prompt)
            await Outbox(body, body.now).fill(partial(self._grow, request, chunks, begun, grown))

    async def _grow(
        self,
        request: Request,
        chunks: Chunks,
        begun: bytes,
        grown: AsyncIterator[Grown],
        outbox: Outbox,
    ) -> None:
        """Everything after the head, where an error can only be an event."""

        def taken(one: Grown) -> bool:
            prompt, delta = one
            chunk = chunks.plain(delta, prompt)
            return chunk is not None and outbox.put_nowait(chunk)

        try:
            await outbox.put(begun)
            offer(grown, taken)
            async for prompt, delta in grown:
                if chunk := chunks.grown(delta, prompt):
                    await outbox.put(chunk)
            await outbox.put(chunks.closing() + DONE)
        except MeshError as error:
            await outbox.put(_last(failure(error, {})))
        except Exception as error:  # noqa: BLE001  one answer's end is not the node's
            report(self.journal, request.scope, error)
            await outbox.put(_last(INTERNAL))


def _last(failed: Failure) -> bytes:
    return event(msgspec.json.encode(failed.body()))
