"""The routes of :9337, and the models that stand behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from p2p_mesh.core.names import Digest, ModelId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.errors import UnknownModel
from p2p_mesh.front.answering import Answering
from p2p_mesh.front.media import Media
from p2p_mesh.front.queries import Queries
from p2p_mesh.http.application import application
from p2p_mesh.http.failure import Failure
from p2p_mesh.http.guard import Access, Policy
from p2p_mesh.journal import Journal

_OPEN = frozenset({"/health", "/health/"})
_NO_RESPONSES = Failure(
    404, "not_found", "/v1/responses is not served here; /v1/chat/completions is, use that"
)

Endpoint = Callable[[Request], Awaitable[Any]]


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
    shards: int = 0
    """Of them, those that have a part of its experts,"""
    routing_mass: float | None = None
    """and the share of the routing that goes to the experts which the poorest of these has; None
    where there are none.
    """


class Inference(Protocol):
    """What answers."""

    def models(self) -> Sequence[ModelCard]:
        """The models of the whole mesh."""
        ...

    def answer(
        self, request: InferenceRequest, client: str = "", conversation: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer as it grows; leaving the context cancels it. Raises MeshErrors, on entering
        or at any delta. Clients of one name share what is one client's. Requests of one
        `conversation`, where the client says which, go to one node if it matters to whom.
        """
        ...

    async def query(self, query: Query, client: str = "") -> Reply:
        """What is answered at once. Raises MeshErrors."""
        ...


def create_app(
    inference: Inference,
    *,
    policy: Policy,
    clock: Callable[[], float],
    random: Random,
    journal: Journal,
    remote_media: bool = False,
) -> ASGIApp:
    """The API as an ASGI application. With `remote_media`, links to images are fetched."""
    models = Models(inference)
    media = Media() if remote_media else None
    answering = Answering(
        inference.answer, clock=clock, random=random, journal=journal, media=media
    )
    queries = Queries(inference, models.writers, clock)
    routes = [*_gets(models), *_posts(_endpoints(answering, queries)), *_absent()]
    return application(routes, policy=policy, access=Access(open_paths=_OPEN), journal=journal)


def _gets(models: Models) -> Iterator[BaseRoute]:
    for slash in ("", "/"):
        for path in ("/v1/models", "/models"):
            yield Route(path + slash, models.all)
        yield Route("/health" + slash, models.health)
    yield Route("/v1/models/{id:path}", models.one)
    yield Route("/models/{id:path}", models.one)


def _endpoints(answering: Answering, queries: Queries) -> dict[str, Endpoint]:
    """By path; what llama-server's clients call stands there without `/v1` too."""
    return {
        "/v1/chat/completions": answering.chat,
        "/v1/completions": answering.completions,
        **dict.fromkeys(("/v1/embeddings", "/embeddings"), queries.embeddings),
        **dict.fromkeys(("/v1/rerank", "/rerank", "/v1/reranking", "/reranking"), queries.rerank),
        **dict.fromkeys(("/v1/tokenize", "/tokenize"), queries.tokenize),
        **dict.fromkeys(("/v1/detokenize", "/detokenize"), queries.detokenize),
    }


def _posts(endpoints: dict[str, Endpoint]) -> Iterator[BaseRoute]:
    for path, endpoint in endpoints.items():
        for slash in ("", "/"):
            yield Route(path + slash, endpoint, methods=["POST"])


def _absent() -> Iterator[BaseRoute]:
    """What newer clients of OpenAI call first, with whatever method."""
    for path in ("/v1/responses", "/v1/responses/{rest:path}"):
        yield Route(path, _NO_RESPONSES.response())


class Models:
    """The endpoints that show what there is."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def writers(self) -> Sequence[ModelId]:
        """The models that write text."""
        cards = self._inference.models()
        return [card.id for card in cards if "generate" in card.capabilities]

    async def health(self, _request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def all(self, _request: Request) -> Response:
        cards = [_card(card) for card in self._inference.models()]
        return JSONResponse({"object": "list", "data": cards})

    async def one(self, request: Request) -> Response:
        wanted = request.path_params["id"].rstrip("/")
        cards = self._inference.models()
        for card in cards:
            if card.id == wanted:
                return JSONResponse(_card(card))
        names = ", ".join(card.id for card in cards) or "none yet"
        raise UnknownModel(
            f"there is no model {wanted[:256]!r} here; there are: {names}", param="model"
        )


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
            "shards": card.shards,
            "routing_mass": card.routing_mass,
        },
    }
