"""The frozen records that travel: between nodes, between node and engine, and to clients.

Bounds stand in the types, so that a record which decodes is a record within its limits
(specs/README.md). Fields that this version does not know are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from p2p_mesh.core.names import Digest, ModelId, RequestId

Role = Literal["member", "client"]
Finish = Literal["stop", "length"]

ShortText = Annotated[str, Meta(max_length=256)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]

MAX_PROMPT_TOKENS = 2**20
MAX_MESSAGES = 4096


class Record(Struct, frozen=True, omit_defaults=True):
    """Base of all records."""


class Sampling(Record, frozen=True, kw_only=True):
    """How the next token is drawn. Defaults are OpenAI's, and llama-server's for the rest.

    Position i of choice c draws with a generator seeded by H(seed, c, i), so that a draw
    needs no history.
    """

    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**20)] = 40
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class ChatPrompt(Record, frozen=True, kw_only=True, tag="chat"):
    """Messages as the client sent them; the engine applies the model's own template."""

    messages: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1, max_length=MAX_MESSAGES)]


class TextPrompt(Record, frozen=True, kw_only=True, tag="text"):
    text: str


class TokenPrompt(Record, frozen=True, kw_only=True, tag="tokens"):
    tokens: Annotated[tuple[TokenId, ...], Meta(min_length=1, max_length=MAX_PROMPT_TOKENS)]


class InferenceRequest(Record, frozen=True, kw_only=True):
    """One question to one model. The asking node draws the id, the seed and the time."""

    id: Annotated[RequestId, Meta(min_length=1, max_length=64)]
    model: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: Sampling = Sampling()
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Tokens of the answer at most; None: until the context is full."""
    stop: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
                    Meta(max_length=16)] = ()  # fmt: skip
    asked_at: Count = 0
    """Unix seconds; what a template's `strftime_now` shows."""


class Usage(Record, frozen=True, kw_only=True):
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0


class Delta(Record, frozen=True, kw_only=True):
    """What an answer grew by. Covers every sampled token, also one whose text is withheld
    (half a UTF-8 character, a possible stop string), so an answer can be resumed from its ids.
    The last one of a choice has `finish`; the last of an answer has `usage`.
    """

    choice: Annotated[int, Meta(ge=0, le=127)] = 0
    tokens: Annotated[tuple[TokenId, ...], Meta(max_length=65536)] = ()
    text: str = ""
    finish: Finish | None = None
    usage: Usage | None = None


class ModelFile(Record, frozen=True, kw_only=True):
    """A model file on this node, as its header describes it."""

    id: ModelId
    path: str
    size_bytes: int
    architecture: str
    context_length: int
    """Tokens the model was trained for; 0 where the header does not say."""
    kv_bytes_per_token: int
    """Of the KV cache, at f16: an upper bound where layers have a sliding window."""
    digest: Digest | None = None


class Resources(Record, frozen=True, kw_only=True):
    """What a node has to work with; memory in bytes."""

    memory_total: Count
    memory_free: Count
    threads: Count
    device: ShortText = "cpu"


class ServedModel(Record, frozen=True, kw_only=True):
    """A model that a node answers for."""

    id: Annotated[ModelId, Meta(min_length=1, max_length=256)]
    digest: Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None = None
    context: Count
    slots: Count
    capabilities: Annotated[tuple[ShortText, ...], Meta(max_length=32)] = ("generate",)
    resumable: bool = True
    numerics: ShortText = ""


class Announcement(Record, frozen=True, kw_only=True):
    """What a member offers, signed by it (core/inventory.py). Times in seconds."""

    sequence: tuple[Count, Count]
    """Boot time in milliseconds, then a counter: later is newer, also after a restart."""
    issued_at: Annotated[float, Meta(ge=0, le=2**53)]
    lifetime: Annotated[float, Meta(gt=0, le=600)]
    name: ShortText
    version: ShortText
    resources: Resources
    models: Annotated[tuple[ServedModel, ...], Meta(max_length=256)] = ()
    addresses: Annotated[tuple[ShortText, ...], Meta(max_length=32)] = ()
    """Multiaddrs without the peer id."""
