"""What an OpenAI-compatible server sends, as far as it is read; everything else is passed over.

Bounds stand in the types. A server may leave out most of it, and send null for all of it.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from p2p_mesh.core.records import MAX_CHOICES, Count, TokenId
from p2p_mesh.errors import RemoteError

T = TypeVar("T")

Byte = Annotated[int, Meta(ge=0, le=255)]


class Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class Call(Struct, frozen=True):
    index: Annotated[int, Meta(ge=0, lt=1024)] | None = None
    function: Function | None = None


class Spoken(Struct, frozen=True):
    """What a chat's choice grew by."""

    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The same thing under the name that vLLM, Ollama and others give it."""
    tool_calls: list[Call] | None = None


class Likelihood(Struct, frozen=True):
    token: str
    logprob: float | None = None
    bytes: list[Byte] | None = None
    id: TokenId | None = None
    """Only llama-server and its like tell."""
    top_logprobs: list[Likelihood] | None = None


class Logprobs(Struct, frozen=True):
    """Of a chat, `content`; of a completion, three columns."""

    content: list[Likelihood] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class Choice(Struct, frozen=True):
    index: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)] = 0
    delta: Spoken | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class PromptDetails(Struct, frozen=True):
    cached_tokens: Count | None = None


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: Count | None = None


class Used(Struct, frozen=True):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    total_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None


class Chunk(Struct, frozen=True):
    """An event of a streamed answer."""

    choices: list[Choice] | None = None
    usage: Used | None = None
    error: Any = None


class Embedding(Struct, frozen=True):
    embedding: list[float]
    index: int = 0


class Embeddings(Struct, frozen=True):
    data: list[Embedding]
    usage: Used | None = None


class Ranked(Struct, frozen=True):
    index: int
    relevance_score: float


class Ranking(Struct, frozen=True):
    results: list[Ranked]
    usage: Used | None = None


class Piece(Struct, frozen=True):
    id: TokenId
    piece: str | list[Byte] = ""


class Tokenized(Struct, frozen=True):
    tokens: list[TokenId | Piece]


class Detokenized(Struct, frozen=True):
    content: str


class Templated(Struct, frozen=True):
    prompt: str


class Listed(Struct, frozen=True):
    """A model that a server has. Who says what of it differs, so probe.py reads the rest."""

    id: Annotated[str, Meta(min_length=1, max_length=1024)]
    owned_by: Any = None
    max_model_len: Any = None
    context_length: Any = None
    context_window: Any = None
    meta: Any = None
    meshnode: Any = None


class Listing(Struct, frozen=True):
    data: list[Listed]


def read(raw: bytes, kind: type[T]) -> T:
    """Raises RemoteError for what is no such thing."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteError(f"what the server sent is no {kind.__name__}: {error}") from error


def loosely(raw: bytes) -> Any:
    """Any JSON; None for what is none."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
