"""The routes of :9337. From a request to the mesh's answer; which node gives it is not known here.

The status of a stream is that of its first delta: no head is sent before that has come. An error
after it is an event, and then the stream ends without `[DONE]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal, Protocol

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from p2p_mesh.core.names import Digest, ModelId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest
from p2p_mesh.errors import MeshError, RemoteError, UnknownModel
from p2p_mesh.front.answer import Answer
from p2p_mesh.front.openai import Drawn, Kind, Question, question
from p2p_mesh.http.application import application, report
from p2p_mesh.http.body import parse
from p2p_mesh.http.failure import INTERNAL, Failure, failure
from p2p_mesh.http.guard import Access, Policy
from p2p_mesh.http.stream import DONE, Deferred, EventStream, Outbox, Write, event
from p2p_mesh.journal import Journal

PARSED_AT_ONCE = 64 << 10
"""Bytes of a body that are parsed on the loop: a millisecond of work."""

_OPEN = frozenset({"/health", "/health/"})
_PREFIXES: dict[Kind, str] = {"chat": "chatcmpl-", "text": "cmpl-"}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model of the mesh, as clients are told of it."""

    id: ModelId
    created: int = 0
    """Unix seconds; when this node first knew of it."""
    context: int | None = None
    digest: Digest | None = None
    capabilities: tuple[str, ...] = ("generate",)
    state: Literal["ready", "loading"] = "ready"
    nodes: int = 1
    """How many nodes answer for it."""


class Inference(Protocol):
    """What answers."""

    def models(self) -> Sequence[ModelCard]:
        """The models of the whole mesh."""
        ...

    def answer(
        self, request: InferenceRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer as it grows; leaving the context cancels it. Raises MeshErrors, on entering
        or at any delta.
        """
        ...


def create_app(
    inference: Inference,
    *,
    policy: Policy,
    clock: Callable[[], float],
    random: Random,
    journal: Journal,
) -> ASGIApp:
    """The API as an ASGI application."""
    front = Front(inference, clock, random, journal)
    access = Access(open_paths=_OPEN)
    return application([*_routes(front)], policy=policy, access=access, journal=journal)


def _routes(front: Front) -> Iterator[BaseRoute]:
    for slash in ("", "/"):
        for models in ("/v1/models", "/models"):
            yield Route(models + slash, front.models)
        yield Route("/health" + slash, front.health)
        yield Route("/v1/chat/completions" + slash, front.chat, methods=["POST"])
        yield Route("/v1/completions" + slash, front.completions, methods=["POST"])
    yield Route("/v1/models/{id:path}", front.model)
    yield Route("/models/{id:path}", front.model)


async def _parse(body: bytes) -> dict[str, Any]:
    """Megabytes of JSON take seconds: in a thread, while the loop goes on."""
    if len(body) <= PARSED_AT_ONCE:
        return parse(body)
    return await trio.to_thread.run_sync(parse, body)


class Front:
    """The endpoints."""

    def __init__(
        self,
        inference: Inference,
        clock: Callable[[], float],
        random: Random,
        journal: Journal,
    ) -> None:
        self._inference = inference
        self._clock = clock
        self._random = random
        self._journal = journal

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        cards = [_card(card) for card in self._inference.models()]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        wanted = request.path_params["id"].rstrip("/")
        cards = self._inference.models()
        for card in cards:
            if card.id == wanted:
                return JSONResponse(_card(card))
        names = ", ".join(card.id for card in cards) or "none yet"
        raise UnknownModel(
            f"there is no model {wanted[:256]!r} here; there are: {names}", param="model"
        )

    async def chat(self, request: Request) -> ASGIApp:
        return await self._ask("chat", request)

    async def completions(self, request: Request) -> ASGIApp:
        return await self._ask("text", request)

    async def _ask(self, kind: Kind, request: Request) -> ASGIApp:
        asked = question(kind, await _parse(await request.body()), self._draw(kind))
        headers: dict[str, str] = {"x-request-id": asked.request.id}
        if asked.stream:
            return EventStream(partial(self._stream, asked, request), headers)
        return Deferred(partial(self._whole, asked, headers))

    def _draw(self, kind: Kind) -> Drawn:
        return Drawn(
            id=RequestId(f"{_PREFIXES[kind]}{self._random.getrandbits(128):032x}"),
            seed=self._random.getrandbits(63),
            asked_at=int(self._clock()),
        )

    async def _whole(self, asked: Question, headers: dict[str, str]) -> Response:
        answer = Answer(asked)
        async with self._inference.answer(asked.request) as deltas:
            text = "".join([answer.take(delta) async for delta in deltas])
        return JSONResponse(answer.whole(text), headers=headers)

    async def _stream(self, asked: Question, request: Request, write: Write) -> None:
        answer = Answer(asked)
        async with self._inference.answer(asked.request) as deltas:
            try:
                first = await anext(deltas)
            except StopAsyncIteration:
                raise RemoteError("the answer ended before it began") from None
            await Outbox(write).fill(partial(self._grow, request, answer, first, deltas))

    async def _grow(
        self,
        request: Request,
        answer: Answer,
        first: Delta,
        deltas: AsyncIterator[Delta],
        outbox: Outbox,
    ) -> None:
        """Everything after the head, where an error can only be an event."""
        try:
            await outbox.put(answer.opening() + answer.grown(first))
            async for delta in deltas:
                if chunk := answer.grown(delta):
                    await outbox.put(chunk)
            await outbox.put(answer.closing() + DONE)
        except MeshError as error:
            await outbox.put(_last(failure(error)))
        except Exception as error:  # noqa: BLE001  one answer's end is not the node's
            report(self._journal, request.scope, error)
            await outbox.put(_last(INTERNAL))


def _last(failed: Failure) -> bytes:
    return event(msgspec.json.encode(failed.body()))


def _card(card: ModelCard) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": card.created,
        "owned_by": "meshnode",
        "meshnode": {
            "state": card.state,
            "context": card.context,
            "digest": card.digest,
            "capabilities": list(card.capabilities),
            "nodes": card.nodes,
        },
    }
