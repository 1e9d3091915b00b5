"""`/v1/rerank`, in Jina's shape: from a body to queries, and from their replies to a ranking.
Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from p2p_mesh.core.records import Reply, RerankQuery, Scores
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.openai import model_id
from p2p_mesh.http.body import Fields, boolean, integer, items, text, wrong

MAX_DOCUMENTS = 2048
"""Jina's limit."""
PER_QUERY = 64


@dataclass(frozen=True, slots=True)
class RankingWanted:
    """The queries of a request, and how their scores are wanted."""

    queries: tuple[RerankQuery, ...]
    top: int
    with_documents: bool = True


def ranking_wanted(body: dict[str, Any]) -> RankingWanted:
    """What a body asks. Raises RequestError, naming the field that is wrong."""
    fields = Fields(body)
    model = fields.require("model", model_id, "name one that reranks")
    query = fields.require("query", _some_text)
    documents = fields.require("documents", items(_document, 1, MAX_DOCUMENTS))
    top = fields.take("top_n", integer(1, 2**31 - 1)) or len(documents)
    with_documents = fields.take("return_documents", boolean)
    fields.drop("user")
    fields.end()
    queries = tuple(
        RerankQuery(model=model, query=query, documents=documents[i : i + PER_QUERY])
        for i in range(0, len(documents), PER_QUERY)
    )
    return RankingWanted(queries, top, with_documents is not False)


def _some_text(value: Any, name: str) -> str:
    if not (found := text(value, name)):
        raise RequestError(f"{name} is empty", param=name)
    return found


def _document(value: Any, name: str) -> str:
    if not isinstance(value, dict):
        if not isinstance(value, str):
            raise wrong(name, "a string or an object with text", value)
        return value
    fields = Fields(value, name)
    found = fields.require("text", text)
    fields.end()
    return found


class Ranking:
    """The answer, put together from the replies in the order of their queries."""

    def __init__(self, wanted: RankingWanted) -> None:
        self._wanted = wanted
        self._scores: list[float] = []
        self._tokens = 0

    def take(self, query: RerankQuery, reply: Reply) -> None:
        """Raises RemoteError for scores that nobody can use."""
        if not isinstance(reply, Scores) or len(reply.scores) != len(query.documents):
            raise RemoteError("a reply that is not one score for each document")
        if not all(map(math.isfinite, reply.scores)):
            raise RemoteError("a score that is no number")
        self._scores += reply.scores
        self._tokens += reply.prompt_tokens

    def body(self) -> dict[str, Any]:
        """The best documents, best first; of equals, the earlier."""
        documents = [one for query in self._wanted.queries for one in query.documents]
        ranked = sorted(range(len(documents)), key=lambda place: -self._scores[place])
        results: list[dict[str, Any]] = [
            {"index": place, "relevance_score": self._scores[place]}
            for place in ranked[: self._wanted.top]
        ]
        if self._wanted.with_documents:
            for result in results:
                result["document"] = {"text": documents[result["index"]]}
        return {
            "object": "list",
            "model": self._wanted.queries[0].model,
            "results": results,
            "usage": {"prompt_tokens": self._tokens, "total_tokens": self._tokens},
        }
