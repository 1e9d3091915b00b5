"""`/tokenize` and `/detokenize`, in llama-server's shape. Pure.

A text comes as `content`, and then without the tokens that a model puts around it unless they are
asked for; or as `prompt`, vLLM's name, or as `messages`, and then with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    Reply,
    Text,
    TextPrompt,
    TokenizeQuery,
    Tokens,
)
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.openai import chat_prompt, model_id, token_ids
from p2p_mesh.front.sampling import one_of
from p2p_mesh.front.tools import toolbox
from p2p_mesh.http.body import Fields, boolean, text

_SOURCES = ("content", "prompt", "messages")


def tokenize_query(body: dict[str, Any], models: Sequence[ModelId], asked_at: int) -> TokenizeQuery:
    """What a body asks; of `models`, the only one is meant where none is named. Raises
    RequestError, naming the field that is wrong.
    """
    fields = Fields(body)
    add_special = one_of(fields, "add_special", "add_special_tokens", boolean)
    query = TokenizeQuery(
        model=_model(fields, models),
        prompt=_prompt(fields, body),
        add_special=body.get("content") is None if add_special is None else add_special,
        parse_special=fields.take("parse_special", boolean) is not False,
        with_pieces=fields.take("with_pieces", boolean) or False,
        asked_at=asked_at,
    )
    fields.neutral("add_generation_prompt", True)
    fields.end()
    return query


def _model(fields: Fields, models: Sequence[ModelId]) -> ModelId:
    if (named := fields.take("model", model_id)) is not None:
        return named
    if len(models) != 1:
        there = ", ".join(models) or "none yet"
        raise RequestError(f"model is missing: name one of {there}"[:2000], param="model")
    return models[0]


def _prompt(fields: Fields, body: dict[str, Any]) -> ChatPrompt | TextPrompt:
    given = [source for source in _SOURCES if body.get(source) is not None]
    if len(given) != 1:
        param = given[1] if given else "content"
        raise RequestError(f"{param}: give one of {', '.join(_SOURCES)}", param=param)
    if given == ["messages"]:
        return _without_media(chat_prompt(fields, toolbox(fields)))
    return TextPrompt(text=fields.require(given[0], text))


def _without_media(prompt: ChatPrompt) -> ChatPrompt:
    """Refuses images and sounds: what they become is no tokens of the vocabulary."""
    for place, message in enumerate(prompt.messages):
        parts = message["content"] if isinstance(message["content"], list) else ()
        for number, part in enumerate(parts):
            if part["type"] != "text":
                name = f"messages[{place}].content[{number}]"
                raise RequestError(f"{name} has no tokens; leave out {part['type']}", param=name)
    return prompt


def tokens_body(query: TokenizeQuery, reply: Reply) -> dict[str, Any]:
    """The tokens; with pieces, each spelled as text, or as bytes where it is none. Raises
    RemoteError for a reply that is something else.
    """
    if not isinstance(reply, Tokens):
        raise RemoteError("a reply that is not tokens")
    if not query.with_pieces:
        return {"tokens": reply.tokens}
    if len(reply.pieces) != len(reply.tokens):
        raise RemoteError("a reply that is not one piece for each token")
    pairs = zip(reply.tokens, reply.pieces, strict=True)
    return {"tokens": [{"id": token, "piece": _piece(piece)} for token, piece in pairs]}


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def detokenize_query(body: dict[str, Any], models: Sequence[ModelId]) -> DetokenizeQuery:
    """What a body asks. Raises RequestError, naming the field that is wrong."""
    fields = Fields(body)
    query = DetokenizeQuery(
        model=_model(fields, models), tokens=fields.require("tokens", token_ids)
    )
    fields.end()
    return query


def text_body(reply: Reply) -> dict[str, Any]:
    """The text. Raises RemoteError for a reply that is something else."""
    if not isinstance(reply, Text):
        raise RemoteError("a reply that is no text")
    return {"content": reply.text}
