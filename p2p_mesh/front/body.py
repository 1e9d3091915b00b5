"""The JSON body of a request, read without holding up the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from starlette.requests import HTTPConnection, Request

from p2p_mesh.http.body import parse

PARSED_AT_ONCE = 64 << 10
"""Bytes of a body that are parsed on the loop: a millisecond of work."""

NAMED = 256
"""Characters of a conversation's name that count."""


async def read(request: Request) -> dict[str, Any]:
    """The object in the body. Megabytes of JSON take seconds: in a thread, while the loop goes on.
    Raises RequestError.
    """
    body = await request.body()
    if len(body) <= PARSED_AT_ONCE:
        return parse(body)
    return await trio.to_thread.run_sync(parse, body)


def client(connection: HTTPConnection, body: Mapping[str, Any] | None = None) -> str:
    """Who asks, as far as can be told: from where, and for which `user` of a service that says."""
    host = connection.client.host if connection.client else ""
    user = (body or {}).get("user")
    return f"{host}/{user[:64]}" if isinstance(user, str) and user else host


def conversation(body: Mapping[str, Any]) -> str:
    """What the client calls the conversation, if it does. Not by its `user`: one has several, and
    behind a proxy all are one user.
    """
    key = body.get("prompt_cache_key")
    return key[:NAMED] if isinstance(key, str) else ""
