"""A streamed answer, read from the socket event by event: closing it is a client that leaves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio


class Events:
    """The events of a response: JSON objects, in order, until `[DONE]` or its end."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._held = b""
        self.head = b""
        """The status line."""
        self.is_done = False
        """Whether `[DONE]` was read."""

    async def next(self) -> dict[str, Any] | None:
        """The next event; None at the end."""
        while (line := await self._line()) is not None:
            if line.startswith(b"data: {"):
                event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                return event
            if line == b"data: [DONE]":
                self.is_done = True
                return None
            self.head = self.head or line
        return None

    async def all(self) -> list[dict[str, Any]]:
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found

    async def _line(self) -> bytes | None:
        while b"\n" not in self._held:
            chunk = await self._stream.receive_some()
            if not chunk:
                return None
            self._held += chunk
        line, self._held = self._held.split(b"\n", 1)
        return line.rstrip(b"\r")


@asynccontextmanager
async def post_stream(url: str, body: Mapping[str, Any]) -> AsyncIterator[Events]:
    """POSTs `body` with `"stream": true`; leaving the context closes the connection."""
    parts = urlsplit(url)
    raw = json.dumps({**body, "stream": True}).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        "Connection: close\r\n\r\n"
    )
    assert parts.port is not None
    async with await trio.open_tcp_stream(parts.hostname or "localhost", parts.port) as stream:
        await stream.send_all(head.encode() + raw)
        yield Events(stream)
