"""From an InferenceRequest to the body that an OpenAI-compatible server takes. Pure.

What has a default goes only where it differs from ours: the record does not tell a field that the
client left out from one that it gave as the default, and a server has defaults of its own. A server
that refuses a field refuses what the client asked for, and says so itself. The seed always goes, so
that another try gives the same answer.
"""

from __future__ import annotations

from typing import Any

from p2p_mesh.core.records import (
    ChatPrompt,
    InferenceRequest,
    Sampling,
    TextPrompt,
    Tool,
)
from p2p_mesh.errors import RequestError

_NEUTRAL = Sampling()
_SAMPLED = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
_SEEDS = 2**31
"""Servers keep a seed in 64, 32 or 31 bits."""


def completion(request: InferenceRequest, model: str) -> tuple[str, dict[str, Any]]:
    """The path and the body that ask for a streamed answer. Raises RequestError for what no
    foreign server can do.
    """
    if request.resume:
        raise RequestError(f"an answer of {request.model} cannot be continued", param="resume")
    common = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(request.sampling),
        **_limits(request),
    }
    prompt = request.prompt
    if isinstance(prompt, ChatPrompt):
        return "chat/completions", {**common, **chat(prompt), **_chat_logprobs(request.logprobs)}
    text: dict[str, Any] = {"prompt": prompt.text if isinstance(prompt, TextPrompt) else
                            list(prompt.tokens)}  # fmt: skip
    if isinstance(prompt, TextPrompt) and prompt.suffix:
        text["suffix"] = prompt.suffix
    if request.echo:
        text["echo"] = True
    if request.logprobs is not None:
        text["logprobs"] = request.logprobs
    return "completions", {**common, **text}


def refuse_ignored(request: InferenceRequest, url: str) -> None:
    """Raises RequestError for what llama-server would pass over without a word."""
    has_suffix = isinstance(request.prompt, TextPrompt) and bool(request.prompt.suffix)
    for name, is_given in (("echo", request.echo), ("suffix", has_suffix)):
        if is_given:
            raise RequestError(
                f"{name}: {request.model} runs on the llama-server at {url}, which ignores it; "
                "leave it out",
                param=name,
            )


def _sampling(sampling: Sampling) -> dict[str, Any]:
    body: dict[str, Any] = {"seed": sampling.seed % _SEEDS}
    for name in _SAMPLED:
        if (value := getattr(sampling, name)) != getattr(_NEUTRAL, name):
            body[name] = value
    if sampling.repeat_penalty != _NEUTRAL.repeat_penalty:
        # llama-server's name for it, and vLLM's.
        body["repeat_penalty"] = body["repetition_penalty"] = sampling.repeat_penalty
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return body


def _limits(request: InferenceRequest) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if request.choices > 1:
        body["n"] = request.choices
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.schema is not None:
        body["response_format"] = _format(request.schema)
    return body


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    if schema == {"type": "object"}:
        return {"type": "json_object"}
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named}


def chat(prompt: ChatPrompt) -> dict[str, Any]:
    """The fields that make up a conversation."""
    body: dict[str, Any] = {"messages": list(prompt.messages)}
    if prompt.tools:
        body["tools"] = [_tool(one) for one in prompt.tools]
        body["tool_choice"] = prompt.tool_choice
        if not prompt.parallel_tool_calls:
            body["parallel_tool_calls"] = False
    variables = dict(prompt.variables)
    if (effort := variables.pop("reasoning_effort", None)) is not None:
        body["reasoning_effort"] = effort
    if variables:
        body["chat_template_kwargs"] = variables
    return body


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _chat_logprobs(wanted: int | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    return {"logprobs": True, **({"top_logprobs": wanted} if wanted else {})}
