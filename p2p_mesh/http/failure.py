"""How a failure looks to a client: OpenAI's error body, its status and its headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from p2p_mesh.errors import MeshError

# By status, as OpenAI names them; everything else is the client's fault or ours.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

_WAIT = frozenset({429, 503})
"""Statuses that say when to come back."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer, and why."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    answer: Mapping[str, Any] | None = None
    """What there is of the answer, where it had begun; empty where the client has it already."""

    def body(self) -> dict[str, Any]:
        """What stands in the response, or in the event that ends a stream."""
        ours = "server_error" if self.status >= 500 else "invalid_request_error"
        error: dict[str, Any] = {
            "message": self.message,
            "type": _TYPES.get(self.status, ours),
            "param": self.param,
            "code": self.code,
        }
        if self.answer is None:
            return {"error": error}
        partial = {"partial": self.answer} if self.answer else {}
        return {"error": {**error, "partial": True}, **partial}

    def response(self) -> JSONResponse:
        headers = dict(self.headers)
        if self.status in _WAIT:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after or 1)))
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


INTERNAL = Failure(500, "internal_error", "something broke in this node; its log says what")


def failure(error: MeshError, answer: Mapping[str, Any] | None = None) -> Failure:
    """What a client is told of one of our errors; `answer` as in Failure."""
    return Failure(
        error.status, error.code, str(error), error.param, error.retry_after, answer=answer
    )
