"""From the body of a chat or a completion, as OpenAI's clients send it, to a Question. Pure.

A field is honoured, accepted without effect, or refused by name: never ignored. A field that is
null or at OpenAI's default counts as absent. docs/api.md lists them all; tests compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import msgspec

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPT_TOKENS,
    ChatPrompt,
    InferenceRequest,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.errors import RequestError
from p2p_mesh.front.messages import messages
from p2p_mesh.front.sampling import SEEDS, one_of, sampling, stop
from p2p_mesh.front.schema import response_schema
from p2p_mesh.front.tools import Toolbox, toolbox
from p2p_mesh.http.body import (
    Fields,
    array,
    boolean,
    integer,
    items,
    mapping,
    text,
    word,
    wrong,
)

Kind = Literal["chat", "text"]

ACCEPTED = (
    "cache_prompt", "metadata", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
)  # fmt: skip
"""Fields that are about OpenAI's own house, or that ask for what is done anyway: accepted, and
without effect on the answer. `user` and `prompt_cache_key` are read elsewhere (front/body.py).
"""

# What is not honoured, with the values that ask for nothing.
NEUTRAL: dict[Kind, dict[str, tuple[Any, ...]]] = {
    "chat": {
        "add_generation_prompt": (True,),
        "audio": (),
        "ignore_eos": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
    "text": {
        "ignore_eos": (False,),
    },
}

TEXT_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""
MAX_PROMPTS = 64
MAX_VARIABLES = 64

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_OURS = frozenset(
    {"add_generation_prompt", "bos_token", "eos_token", "messages", "strftime_now", "tools"}
)
"""What a template is given by the engine, and not by a client."""

_MAX_TOKENS = integer(1, 2**31 - 1)
_MANY = integer(1, MAX_CHOICES)
_LOGPROBS = integer(0, MAX_LOGPROBS)
_TOKEN = integer(0, 2**31 - 1)

Ask = Callable[..., InferenceRequest]
Prompt = TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class Drawn:
    """What chance and the clock decide, drawn by the node that is asked."""

    id: RequestId
    seed: int
    asked_at: int


@dataclass(frozen=True, slots=True)
class Question:
    """Requests, one for each prompt, and how their answers are wanted as one."""

    kind: Kind
    requests: tuple[InferenceRequest, ...]
    stream: bool = False
    include_usage: bool = False
    choices: int = 1
    """Choices of each prompt that the client gets: of more that are asked for, the best."""
    logprobs: int | None = None
    """What the client gets of log-probabilities; a request may ask for more than that."""
    is_legacy: bool = False
    """Calls are answered as `function_call`."""


def question(kind: Kind, body: dict[str, Any], drawn: Drawn, *, links: bool = False) -> Question:
    """What a body asks; with `links`, images may be links. Raises RequestError, naming the field
    that is wrong.
    """
    fields = Fields(body)
    ask = partial(
        InferenceRequest,
        id=drawn.id,
        model=fields.require("model", model_id, "name one of those that GET /v1/models lists"),
        sampling=sampling(fields, drawn.seed),
        stop=fields.take("stop", stop) or (),
        schema=fields.take("response_format", response_schema),
        asked_at=drawn.asked_at,
    )
    asked = _chat(fields, ask, links=links) if kind == "chat" else _text(fields, ask)
    for name, values in NEUTRAL[kind].items():
        fields.neutral(name, *values)
    fields.drop(*ACCEPTED)
    fields.end()
    has_seed = body.get("seed") is not None
    apart = [_apart(one, i, has_seed=has_seed) for i, one in enumerate(asked.requests)]
    return replace(asked, requests=tuple(apart))


def _apart(request: InferenceRequest, place: int, *, has_seed: bool) -> InferenceRequest:
    """A request with an id of its own, and a seed of its own where the client chose none."""
    if place == 0:
        return request
    sampled = request.sampling
    if not has_seed:
        sampled = msgspec.structs.replace(sampled, seed=(sampled.seed + place) % SEEDS)
    name = RequestId(f"{request.id}-{place}")
    return msgspec.structs.replace(request, id=name, sampling=sampled)


def model_id(value: Any, name: str) -> ModelId:
    """Reads the name of a model."""
    model = text(value, name)
    if not 1 <= len(model) <= 256:
        raise RequestError(f"{name} must have 1 to 256 characters", param=name)
    return ModelId(model)


def _chat(fields: Fields, ask: Ask, *, links: bool) -> Question:
    box = toolbox(fields)
    logprobs = _chat_logprobs(fields)
    choices = fields.take("n", _MANY) or 1
    request = ask(
        prompt=chat_prompt(fields, box, links=links),
        choices=choices,
        max_tokens=one_of(fields, "max_tokens", "max_completion_tokens", _MAX_TOKENS),
        logprobs=logprobs,
    )
    return Question(
        "chat", (request,), *_streamed(fields), choices, logprobs, is_legacy=box.is_legacy
    )


def chat_prompt(fields: Fields, box: Toolbox, *, links: bool = False) -> ChatPrompt:
    """Takes the messages, and what else the model's template sees."""
    return ChatPrompt(
        messages=fields.require("messages", partial(messages, links=links)),
        tools=box.tools,
        tool_choice=box.choice,
        parallel_tool_calls=box.parallel,
        variables=_variables(fields),
    )


def _variables(fields: Fields) -> dict[str, Any]:
    effort = fields.take("reasoning_effort", word(*EFFORTS))
    variables: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if effort == "none":
        variables["enable_thinking"] = False
    return variables | (fields.take("chat_template_kwargs", _template_variables) or {})


def _template_variables(value: Any, name: str) -> dict[str, Any]:
    given = mapping(value, name)
    if len(given) > MAX_VARIABLES:
        raise RequestError(f"{name} may hold {MAX_VARIABLES} at most", param=name)
    for one in sorted(_OURS & given.keys()):
        raise RequestError(f"{name}.{one} cannot be chosen", param=f"{name}.{one}")
    return given


def _chat_logprobs(fields: Fields) -> int | None:
    is_wanted = fields.take("logprobs", boolean)
    top = fields.take("top_logprobs", _LOGPROBS)
    if top and not is_wanted:
        raise RequestError("top_logprobs goes with logprobs: true", param="top_logprobs")
    return (top or 0) if is_wanted else None


def _text(fields: Fields, ask: Ask) -> Question:
    prompts = fields.require("prompt", _prompts)
    suffix = fields.take("suffix", text)
    echo = fields.take("echo", boolean) or False
    logprobs = fields.take("logprobs", _LOGPROBS)
    stream, include_usage = _streamed(fields)
    choices, tried = _choices(fields, stream=stream)
    asked = partial(
        ask,
        choices=tried,
        max_tokens=_text_tokens(fields, echo=echo),
        logprobs=0 if logprobs is None and tried > choices else logprobs,
        echo=echo,
    )
    requests = tuple(asked(prompt=_with_suffix(one, suffix)) for one in prompts)
    return Question("text", requests, stream, include_usage, choices, logprobs)


def _choices(fields: Fields, *, stream: bool) -> tuple[int, int]:
    """How many choices the client gets, and of how many they are the best."""
    wanted = fields.take("n", _MANY)
    tried = fields.take("best_of", _MANY)
    choices = wanted or 1
    if tried is None:
        return choices, choices
    if tried < choices:
        raise RequestError(f"best_of must be n ({choices}) or more", param="best_of")
    if stream and tried > choices:
        raise RequestError("best_of needs whole answers and cannot be streamed", param="best_of")
    return choices, tried


def _text_tokens(fields: Fields, *, echo: bool) -> int:
    found = fields.take("max_tokens", integer(0 if echo else 1, 2**31 - 1))
    return TEXT_MAX_TOKENS if found is None else found


def _streamed(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether its usage is."""
    stream = fields.take("stream", boolean) or False
    include = fields.take("stream_options", partial(_include_usage, stream=stream))
    return stream, include or False


def _include_usage(value: Any, name: str, *, stream: bool) -> bool:
    if not stream:
        raise RequestError(f"{name} is only for answers with stream: true", param=name)
    options = Fields(mapping(value, name), name)
    include = options.take("include_usage", boolean) or False
    options.take("include_obfuscation", boolean)
    options.end()
    return include


def _prompts(value: Any, name: str) -> tuple[Prompt, ...]:
    match value:
        case str():
            return (TextPrompt(text=value),)
        case [str() | list(), *_]:
            return items(_prompt, 1, MAX_PROMPTS)(value, name)
        case [_, *_]:
            return (TokenPrompt(tokens=token_ids(value, name)),)
    raise wrong(name, "a string, an array of token ids, or an array of these", value)


def _prompt(value: Any, name: str) -> Prompt:
    if isinstance(value, str):
        return TextPrompt(text=value)
    if not isinstance(value, list) or not value:
        raise wrong(name, "a string or an array of token ids", value)
    return TokenPrompt(tokens=token_ids(value, name))


def token_ids(value: Any, name: str) -> tuple[int, ...]:
    """Reads an array of token ids."""
    values = array(value, name)
    if len(values) > MAX_PROMPT_TOKENS:
        raise RequestError(f"{name} may hold {MAX_PROMPT_TOKENS} tokens at most", param=name)
    # A name is made for a wrong one only: a million of them would hold up the node for a second.
    for i, one in enumerate(values):
        if type(one) is not int or not 0 <= one < 2**31:
            _TOKEN(one, f"{name}[{i}]")
    return tuple(values)


def _with_suffix(prompt: Prompt, suffix: str | None) -> Prompt:
    if not suffix:
        return prompt
    if isinstance(prompt, TokenPrompt):
        raise RequestError("suffix goes with a prompt of text, not of tokens", param="suffix")
    return TextPrompt(text=prompt.text, suffix=suffix)
