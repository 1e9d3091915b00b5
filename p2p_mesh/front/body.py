"""The JSON body of a request, read without holding up the loop."""

from __future__ import annotations

from typing import Any

import trio
from starlette.requests import Request

from p2p_mesh.http.body import parse

PARSED_AT_ONCE = 64 << 10
"""Bytes of a body that are parsed on the loop: a millisecond of work."""


async def read(request: Request) -> dict[str, Any]:
    """The object in the body. Megabytes of JSON take seconds: in a thread, while the loop goes on.
    Raises RequestError.
    """
    body = await request.body()
    if len(body) <= PARSED_AT_ONCE:
        return parse(body)
    return await trio.to_thread.run_sync(parse, body)
