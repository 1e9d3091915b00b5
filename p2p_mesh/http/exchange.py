"""One request and its response, between the protocol machine and the application."""

from __future__ import annotations

import trio
from starlette.types import Message, Receive, Scope, Send

from p2p_mesh.http.stream import WRITE_NOW, Write, WriteNow


def is_chunked(scope: Scope, head: Message) -> bool:
    """Whether the body of that response goes out in chunks (RFC 9112, section 7.1)."""
    return (
        scope.get("http_version") == "1.1"
        and scope.get("method") != "HEAD"
        and head["status"] == 200
        and all(name.lower() != b"content-length" for name, _ in head.get("headers", ()))
    )


class Exchange:
    """One request and its response, as the application sees them.

    A chunk of a stream is written as it stands: the state of the protocol machine is the same
    before and after one, and taking it through there is most of what a token costs a node.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, write: Write, now: WriteNow
    ) -> None:
        self.scope = {**scope, "extensions": {**scope.get("extensions", {}), WRITE_NOW: self.push}}
        self._receive = receive
        self._send = send
        self._write = write
        self._now = now
        self._head: Message = {}
        self._is_chunked = False
        self._is_ending = False
        self._ended = trio.Event()

    async def receive(self) -> Message:
        message: Message = {"type": "http.disconnect"}
        if not self._is_ending:
            message = await self._receive()
        if self._is_ending:
            await self._ended.wait()
        return message

    async def send(self, message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        if not is_body or message.get("more_body", False):
            await self._grow(message, message.get("body", b"") if is_body else b"")
            return
        self._is_ending = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain)
            await self._send(message)
            nursery.cancel_scope.cancel()
        self._ended.set()

    async def _grow(self, message: Message, body: bytes) -> None:
        if self._is_chunked and body:
            await self._write(_chunk(body))
            return
        await self._send(message)
        # The head goes out with the first body: only what comes after that is a chunk alone.
        if message["type"] == "http.response.start":
            self._head = message
        elif body:
            self._is_chunked = is_chunked(self.scope, self._head)

    def push(self, body: bytes) -> bool:
        """A WriteNow, of more of a body that goes out in chunks."""
        can_grow = self._is_chunked and not self._is_ending
        return can_grow and self._now(_chunk(body))

    async def _drain(self) -> None:
        while True:
            await self._receive()


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)
