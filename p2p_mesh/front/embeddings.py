"""`/v1/embeddings`: from a body to queries, and from their replies to what clients read. Pure."""

from __future__ import annotations

import base64
import math
import struct
from dataclasses import dataclass
from typing import Any

import msgspec

from p2p_mesh.core.records import EmbedQuery, Reply, Vectors
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.openai import model_id, token_ids
from p2p_mesh.http.body import Fields, array, integer, items, word, wrong

MAX_TEXTS = 2048
"""OpenAI's limit."""
PER_QUERY = 64
"""Texts of one query: vectors of 16,384 numbers are 4 MiB then, and none are longer."""
MAX_DIMENSIONS = 2**16

_FLOAT = 4

Input = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmbeddingsWanted:
    """The queries of a request, and how their vectors are wanted."""

    queries: tuple[EmbedQuery, ...]
    is_base64: bool = False
    dimensions: int | None = None


def embeddings_wanted(body: dict[str, Any]) -> EmbeddingsWanted:
    """What a body asks. Raises RequestError, naming the field that is wrong."""
    fields = Fields(body)
    model = fields.require("model", model_id, "name one that embeds")
    texts = fields.require("input", _inputs)
    encoding = fields.take("encoding_format", word("float", "base64"))
    dimensions = fields.take("dimensions", integer(1, MAX_DIMENSIONS))
    fields.drop("user")
    fields.end()
    starts = range(0, len(texts), PER_QUERY)
    queries = tuple(EmbedQuery(model=model, inputs=texts[i : i + PER_QUERY]) for i in starts)
    return EmbeddingsWanted(queries, encoding == "base64", dimensions)


def _inputs(value: Any, name: str) -> tuple[Input, ...]:
    if isinstance(value, str):
        return (_input(value, name),)
    if array(value, name) and isinstance(value[0], int):
        return (token_ids(value, name),)
    return items(_input, 1, MAX_TEXTS)(value, name)


def _input(value: Any, name: str) -> Input:
    if not isinstance(value, str | list):
        raise wrong(name, "a string or an array of token ids", value)
    if not value:
        raise RequestError(f"{name} is empty", param=name)
    return value if isinstance(value, str) else token_ids(value, name)


class Embeddings:
    """The answer, put together from the replies in the order of their queries. What comes is
    written at once, since a thousand vectors take long to write.
    """

    def __init__(self, wanted: EmbeddingsWanted) -> None:
        self._wanted = wanted
        self._written: list[msgspec.Raw] = []
        self._tokens = 0

    def take(self, query: EmbedQuery, reply: Reply) -> None:
        """Raises RemoteError for vectors that nobody can use, RequestError if they are shorter
        than what is wanted.
        """
        if not isinstance(reply, Vectors) or len(reply.vectors) != len(query.inputs):
            raise RemoteError("a reply that is not one vector for each text")
        self._tokens += reply.prompt_tokens
        for vector in reply.vectors:
            item = {
                "object": "embedding",
                "index": len(self._written),
                "embedding": self._embedding(vector),
            }
            self._written.append(msgspec.Raw(msgspec.json.encode(item)))

    def _embedding(self, vector: bytes) -> list[float] | str:
        numbers = _numbers(vector)
        size = self._wanted.dimensions
        if size is not None and size < len(numbers):
            numbers = _of_length_one(numbers[:size])
        elif size is not None and size > len(numbers):
            message = f"dimensions is {size}, and the model's vectors have {len(numbers)}"
            raise RequestError(message, param="dimensions")
        if not self._wanted.is_base64:
            return list(numbers)
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()

    def body(self) -> bytes:
        """The answer, as JSON."""
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        model = self._wanted.queries[0].model
        return msgspec.json.encode(
            {"object": "list", "data": self._written, "model": model, "usage": usage}
        )


def _numbers(vector: bytes) -> tuple[float, ...]:
    count, rest = divmod(len(vector), _FLOAT)
    if rest or not count:
        raise RemoteError("a vector that is no row of float32")
    numbers = struct.unpack(f"<{count}f", vector)
    if not math.isfinite(sum(numbers)):
        raise RemoteError("a vector with numbers that are none")
    return numbers


def _of_length_one(numbers: tuple[float, ...]) -> tuple[float, ...]:
    length = math.hypot(*numbers)
    return tuple(one / length for one in numbers) if length else numbers
