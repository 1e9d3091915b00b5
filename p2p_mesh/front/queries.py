"""The operations that are answered at once: vectors, rankings, tokens. Which node answers is not
known here.

A long list is several queries, asked one after the other: each keeps an engine busy by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import Query, Reply
from p2p_mesh.front.body import client, read
from p2p_mesh.front.embeddings import Embeddings, EmbeddingsWanted, embeddings_wanted
from p2p_mesh.front.rerank import Ranking, RankingWanted, ranking_wanted
from p2p_mesh.front.tokens import detokenize_query, text_body, tokenize_query, tokens_body
from p2p_mesh.http.stream import Deferred


class Replier(Protocol):
    """What answers."""

    async def query(self, query: Query, client: str) -> Reply:
        """Raises MeshErrors."""
        ...


@dataclass(frozen=True, slots=True)
class Queries:
    """The endpoints. `writers` gives the models that write text."""

    replier: Replier
    writers: Callable[[], Sequence[ModelId]]
    clock: Callable[[], float]

    async def embeddings(self, request: Request) -> ASGIApp:
        wanted = embeddings_wanted(await read(request))
        return Deferred(partial(self._embed, wanted, client(request)))

    async def _embed(self, wanted: EmbeddingsWanted, who: str) -> Response:
        found = Embeddings(wanted)
        for query in wanted.queries:
            found.take(query, await self.replier.query(query, who))
        return Response(found.body(), media_type="application/json")

    async def rerank(self, request: Request) -> ASGIApp:
        wanted = ranking_wanted(await read(request))
        return Deferred(partial(self._rank, wanted, client(request)))

    async def _rank(self, wanted: RankingWanted, who: str) -> Response:
        found = Ranking(wanted)
        for query in wanted.queries:
            found.take(query, await self.replier.query(query, who))
        return JSONResponse(found.body())

    async def tokenize(self, request: Request) -> ASGIApp:
        query = tokenize_query(await read(request), self.writers(), int(self.clock()))
        return self._looked(query, client(request), partial(tokens_body, query))

    async def detokenize(self, request: Request) -> ASGIApp:
        query = detokenize_query(await read(request), self.writers())
        return self._looked(query, client(request), text_body)

    def _looked(self, query: Query, who: str, body: Callable[[Reply], dict[str, Any]]) -> ASGIApp:
        async def look() -> Response:
            return JSONResponse(body(await self.replier.query(query, who)))

        return Deferred(look)
