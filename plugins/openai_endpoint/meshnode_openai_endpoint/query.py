"""Queries as an OpenAI-compatible server takes them, and its replies. Pure.

Vectors and scores are OpenAI's and Jina's; tokens are llama-server's.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from meshnode_openai_endpoint.body import chat
from meshnode_openai_endpoint.messages import (
    Detokenized,
    Embedding,
    Embeddings,
    Piece,
    Ranking,
    Templated,
    Tokenized,
    Used,
    read,
)
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    EmbedQuery,
    Query,
    Reply,
    RerankQuery,
    Scores,
    Text,
    TextPrompt,
    TokenizeQuery,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import RemoteError

Asked = tuple[str, dict[str, Any]]
"""A path, and a body. A path with a slash before it is the server's own, beside OpenAI's."""


def template(prompt: ChatPrompt, model: str) -> Asked:
    """Asks how the model's template writes a chat."""
    return "/apply-template", {"model": model, "messages": list(prompt.messages)}


def templated(query: TokenizeQuery, raw: bytes) -> TokenizeQuery:
    """The same query of the text that a template made of the chat, special tokens included."""
    text = TextPrompt(text=read(raw, Templated).prompt)
    return TokenizeQuery(
        model=query.model, prompt=text, add_special=query.add_special, with_pieces=query.with_pieces
    )


def asked(query: Query, model: str) -> Asked:
    """How a query is put; the tokens of a chat only another node of meshnode tells, elsewhere it is
    templated first.
    """
    match query:
        case EmbedQuery(inputs=inputs):
            texts = [one if isinstance(one, str) else list(one) for one in inputs]
            return "embeddings", {"model": model, "input": texts, "encoding_format": "float"}
        case RerankQuery():
            body = {"query": query.query, "documents": list(query.documents)}
            return "rerank", {"model": model, **body}
        case TokenizeQuery(prompt=prompt):
            said = chat(prompt) if isinstance(prompt, ChatPrompt) else {"content": prompt.text}
            return "/tokenize", {
                "model": model, **said, "add_special": query.add_special,
                "parse_special": query.parse_special, "with_pieces": query.with_pieces,
            }  # fmt: skip
        case DetokenizeQuery():
            return "/detokenize", {"model": model, "tokens": list(query.tokens)}


def replied(query: Query, raw: bytes) -> Reply:
    """What a server replied. Raises RemoteError for what is no reply to that."""
    match query:
        case EmbedQuery():
            return _vectors(read(raw, Embeddings), len(query.inputs))
        case RerankQuery():
            return _scores(read(raw, Ranking), len(query.documents))
        case TokenizeQuery():
            return _tokens(read(raw, Tokenized))
        case DetokenizeQuery():
            return Text(text=read(raw, Detokenized).content)


def _vectors(found: Embeddings, count: int) -> Vectors:
    rows = sorted(found.data, key=lambda one: one.index)
    if [one.index for one in rows] != list(range(count)):
        raise RemoteError(f"{len(rows)} vectors for {count} texts")
    return Vectors(
        vectors=tuple(_vector(one) for one in rows), prompt_tokens=_prompt_tokens(found.usage)
    )


def _vector(row: Embedding) -> bytes:
    """Of length one, whatever the server makes of it."""
    length = math.hypot(*row.embedding)
    if not 0 < length < math.inf:
        raise RemoteError("a vector without a length")
    return struct.pack(f"<{len(row.embedding)}f", *(one / length for one in row.embedding))


def _scores(found: Ranking, count: int) -> Scores:
    rows = sorted(found.results, key=lambda one: one.index)
    if [one.index for one in rows] != list(range(count)):
        raise RemoteError(f"{len(rows)} scores for {count} documents")
    return Scores(
        scores=tuple(one.relevance_score for one in rows),
        prompt_tokens=_prompt_tokens(found.usage),
    )


def _prompt_tokens(used: Used | None) -> int:
    return (used.prompt_tokens or used.total_tokens or 0) if used else 0


def _tokens(found: Tokenized) -> Tokens:
    pieces = [one for one in found.tokens if isinstance(one, Piece)]
    ids = [one.id if isinstance(one, Piece) else one for one in found.tokens]
    return Tokens(tokens=tuple(ids), pieces=tuple(_spelled(one.piece) for one in pieces))


def _spelled(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)
