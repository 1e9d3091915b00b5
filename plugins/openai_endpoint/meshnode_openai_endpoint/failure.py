"""From a response that is no answer to the error that it means here. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnode_openai_endpoint.messages import loosely
from p2p_mesh.errors import ContextExceeded, MeshError, Overloaded, RequestError, Unavailable
from p2p_mesh.settings import Endpoint

MESSAGE = 1_000
"""Characters of a server's words that are passed on."""

_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_PROMPTS = {
    "chat/completions": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "rerank": "documents",
}
"""What a client calls the prompt, by the path that it is sent to."""

_MISSING = (404, 405, 501)
_RETRY = 1.0
_MOST_RETRY = 3600.0
_SECRET = 8
"""Characters that a part of a key has at least, to be one that nobody may read."""
_BETWEEN = re.compile(r"[\s\"',;:=]+")


@dataclass(frozen=True, slots=True)
class Told:
    """What the body of an error says, in whichever shape."""

    message: str = ""
    codes: frozenset[str] = frozenset()
    param: str | None = None


def failure(status: int, headers: Mapping[str, str], raw: bytes, endpoint: Endpoint) -> MeshError:
    """The error of a response whose status is not 200."""
    found = told(loosely(raw), endpoint.key)
    where = f"the server at {endpoint.url}"
    why = f": {found.message}" if found.message else f" (status {status})"
    retry = _seconds(headers.get("retry-after"))
    if status in (401, 403):
        return Unavailable(
            f"{where} wants another key than that of {endpoint.variable} (status {status})"
            if endpoint.key
            else f"{where} wants a key: put it into {endpoint.variable} (status {status})"
        )
    if status == 429:
        return Overloaded(f"{where} is busy{why}", retry_after=retry)
    if 300 <= status < 400:
        return Unavailable(f"{where} sends elsewhere (status {status}); give the URL it means")
    if status in _MISSING:
        return _missing(found, where, why)
    if 400 <= status < 500:
        return wrong(found) or RequestError(f"{where} refused this{why}", param=found.param)
    return Unavailable(f"{where} failed{why}", retry_after=retry)


def streamed(error: Any, endpoint: Endpoint) -> MeshError:
    """The error that came as an event, in the midst of an answer or in place of one."""
    found = told({"error": error}, endpoint.key)
    if found.codes & (_TOO_LONG | {"invalid_request_error", "400"}):
        return wrong(found) or RequestError(found.message or "the server refused this")
    return Unavailable(f"the server at {endpoint.url} failed: {found.message or 'it says no more'}",
                       retry_after=_RETRY)  # fmt: skip


def blaming(error: MeshError, path: str) -> MeshError:
    """The same error; where a prompt is too long it names the field that holds the prompt."""
    if isinstance(error, ContextExceeded):
        error.param = _PROMPTS.get(path, error.param)
    return error


def told(body: Any, key: str = "") -> Told:
    """OpenAI's `{"error": {"message", ...}}`, and the shapes of those who do it otherwise. A key
    that the server repeats is taken out, and so is each longer part of one, as of `Bearer sk-...`.
    """
    error = _error(body)
    message = _without(key, str(error.get("message") or error.get("detail") or ""))
    codes = frozenset(str(error[name]) for name in ("code", "type") if error.get(name))
    param = error.get("param")
    return Told(
        message=message[:MESSAGE],  # cut first, it might end within a key
        codes=codes,
        param=_without(key, param)[:256] if isinstance(param, str) else None,
    )


def _without(key: str, text: str) -> str:
    parts = [part for part in _BETWEEN.split(key) if len(part) >= _SECRET]
    for secret in sorted(filter(None, (key, *parts)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _error(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    if isinstance(error, dict):
        return error
    return {"message": error} if isinstance(error, str) else {}


def wrong(found: Told) -> RequestError | None:
    """The client's error that a server explains; None where it explains nothing."""
    if found.codes & _TOO_LONG or "maximum context length" in found.message:
        return ContextExceeded(found.message or "the prompt is too long", param=found.param)
    return RequestError(found.message, param=found.param) if found.message else None


def _missing(found: Told, where: str, why: str) -> MeshError:
    if "model_not_found" in found.codes or "model" in found.message.lower():
        return Unavailable(f"{where} has this model no longer{why}", retry_after=_RETRY)
    return RequestError(f"{where} does not do this{why}", param="model")


def _seconds(header: str | None) -> float:
    """Retry-After in seconds; a date, which hardly any server sends, counts as none."""
    try:
        seconds = float(header or _RETRY)
    except ValueError:
        return _RETRY
    return min(seconds, _MOST_RETRY) if seconds > _RETRY else _RETRY  # also for NaN
