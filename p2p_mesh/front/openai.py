"""From the body of an OpenAI request to an InferenceRequest. Pure.

A field is honoured, accepted without effect, or refused by name: never ignored. A field that is
null or at OpenAI's default counts as absent. docs/api.md lists them all; a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    ChatPrompt,
    InferenceRequest,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.errors import RequestError
from p2p_mesh.http.body import Fields, array, boolean, integer, kind, mapping, number, text, wrong

Kind = Literal["chat", "text"]

ACCEPTED = (
    "metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip
"""Fields that are about OpenAI's own house: accepted without effect."""

NO_TOOLS = "is not supported: this version does no tool calls"

# What is not honoured, with the values that ask for nothing.
NEUTRAL: dict[Kind, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("medium", "none"),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
    "text": {
        "best_of": (1,),
        "echo": (False,),
        "logit_bias": ({},),
        "logprobs": (),
        "n": (1,),
        "suffix": ("",),
    },
}
_TOOLS = frozenset({"function_call", "functions", "tool_choice", "tools"})

TEXT_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

_MAX_TOKENS = integer(1, 2**31 - 1)
_TOKEN = integer(0, 2**31 - 1)
_INT64 = integer(-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What chance and the clock decide, drawn by the node that is asked."""

    id: RequestId
    seed: int
    asked_at: int


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and how its answer is wanted."""

    kind: Kind
    request: InferenceRequest
    stream: bool = False
    include_usage: bool = False


def question(kind: Kind, body: dict[str, Any], drawn: Drawn) -> Question:
    """What a body asks. Raises RequestError, naming the field that is wrong."""
    fields = Fields(body)
    model = fields.require("model", _model, "name one of those that GET /v1/models lists")
    prompt = _chat_prompt(fields) if kind == "chat" else fields.require("prompt", _prompt)
    request = InferenceRequest(
        id=drawn.id,
        model=model,
        prompt=prompt,
        sampling=_sampling(fields, drawn.seed),
        max_tokens=_max_tokens(kind, fields),
        stop=fields.take("stop", _stop) or (),
        asked_at=drawn.asked_at,
    )
    stream = fields.take("stream", boolean) or False
    include_usage = fields.take("stream_options", partial(_include_usage, stream=stream)) or False
    for name, values in NEUTRAL[kind].items():
        why = NO_TOOLS if name in _TOOLS else "is not supported"
        fields.neutral(name, *values, why=why)
    fields.drop(*ACCEPTED)
    fields.end()
    return Question(kind, request, stream, include_usage)


def _model(value: Any, name: str) -> ModelId:
    model = text(value, name)
    if not 1 <= len(model) <= 256:
        raise RequestError("model must have 1 to 256 characters", param=name)
    return ModelId(model)


def _sampling(fields: Fields, seed: int) -> Sampling:
    penalty = number(-2, 2)
    given = {
        "temperature": fields.take("temperature", number(0, 2)),
        "top_k": fields.take("top_k", integer(0, 2**20)),
        "top_p": fields.take("top_p", number(0, 1)),
        "min_p": fields.take("min_p", number(0, 1)),
        "repeat_penalty": _one_of(
            fields, "repeat_penalty", "repetition_penalty", number(0, 10, above=True)
        ),
        "presence_penalty": fields.take("presence_penalty", penalty),
        "frequency_penalty": fields.take("frequency_penalty", penalty),
    }
    chosen = fields.take("seed", _INT64)
    # A negative seed is as good as any other; 63 bits of it are kept.
    given["seed"] = seed if chosen is None else chosen & (2**63 - 1)
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def _one_of(fields: Fields, name: str, other: str, read: Any) -> Any:
    """A field of two names, which must agree where both are given."""
    first, second = fields.take(name, read), fields.take(other, read)
    if first is not None and second is not None and first != second:
        raise RequestError(f"{name} and {other} differ; give one of them", param=other)
    return second if first is None else first


def _max_tokens(kind: Kind, fields: Fields) -> int | None:
    if kind == "text":
        return fields.take("max_tokens", _MAX_TOKENS) or TEXT_MAX_TOKENS
    found: int | None = _one_of(fields, "max_tokens", "max_completion_tokens", _MAX_TOKENS)
    return found


def _stop(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (_stop_text(value, name),)
    if not isinstance(value, list):
        raise wrong(name, "a string or an array of strings", value)
    if len(value) > 16:
        raise RequestError(f"{name} may hold 16 strings at most", param=name)
    return tuple(_stop_text(one, f"{name}[{i}]") for i, one in enumerate(value))


def _stop_text(value: Any, name: str) -> str:
    stop = text(value, name)
    if not 1 <= len(stop) <= 256:
        raise RequestError(f"{name} must have 1 to 256 characters", param=name)
    return stop


def _include_usage(value: Any, name: str, *, stream: bool) -> bool:
    if not stream:
        raise RequestError(f"{name} is only for answers with stream: true", param=name)
    options = Fields(mapping(value, name), name)
    include = options.take("include_usage", boolean) or False
    options.take("include_obfuscation", boolean)
    options.end()
    return include


def _prompt(value: Any, name: str) -> TextPrompt | TokenPrompt:
    match value:
        case str():
            return TextPrompt(text=value)
        case [str() as only]:
            return TextPrompt(text=only)
        case [list() as only] if only:
            return _tokens(only, f"{name}[0]")
        case [str() | list(), _, *_]:
            raise RequestError(f"{name} may hold one prompt only; send one by one", param=name)
        case [_, *_]:
            return _tokens(value, name)
    raise wrong(name, "a string or an array of token ids", value)


def _tokens(value: list[Any], name: str) -> TokenPrompt:
    if len(value) > MAX_PROMPT_TOKENS:
        raise RequestError(f"{name} may hold {MAX_PROMPT_TOKENS} tokens at most", param=name)
    # A name is made for a wrong one only: a million of them would hold up the node for a second.
    for i, one in enumerate(value):
        if type(one) is not int or not 0 <= one < 2**31:
            _TOKEN(one, f"{name}[{i}]")
    return TokenPrompt(tokens=tuple(value))


def _chat_prompt(fields: Fields) -> ChatPrompt:
    messages = fields.require("messages", array)
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages must hold 1 to {MAX_MESSAGES} messages", param="messages")
    return ChatPrompt(
        messages=tuple(_message(one, f"messages[{i}]") for i, one in enumerate(messages))
    )


def _message(value: Any, name: str) -> dict[str, Any]:
    fields = Fields(mapping(value, name), name)
    role = fields.require("role", _role)
    fields.neutral("tool_calls", [], why=NO_TOOLS)
    message = {"role": role, "content": fields.require("content", _content)}
    if (author := fields.take("name", text)) is not None:
        message["name"] = author
    # An answer of ours, sent back as an SDK keeps it, has these.
    fields.neutral("annotations", [])
    fields.end()
    return message


def _role(value: Any, name: str) -> str:
    role = text(value, name)
    if role in ("tool", "function"):
        raise RequestError(f"{name} {role!r} {NO_TOOLS}", param=name)
    if role not in _ROLES:
        raise RequestError(f"{name} must be one of {', '.join(_ROLES)}", param=name)
    return _ROLES[role]


def _content(value: Any, name: str) -> str:
    """The text of a message; several parts become lines, as llama-server does it."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        what = "an empty array" if value == [] else kind(value)
        raise RequestError(f"{name} must be a string or text parts, not {what}", param=name)
    return "\n".join(_part(one, f"{name}[{i}]") for i, one in enumerate(value))


def _part(value: Any, name: str) -> str:
    fields = Fields(mapping(value, name), name)
    sort = fields.require("type", text)
    if sort != "text":
        message = f'{name}.type must be "text": images, audio and files are not supported'
        raise RequestError(message, param=f"{name}.type")
    part = fields.require("text", text)
    fields.end()
    return part
