"""Answers that take their time: they end when the client leaves, and are written as they grow.

Hypercorn's trio worker tells a departure only to whoever waits in `receive`; asking
`request.is_disconnected()` always gives False (hypercorn issue 210). So a watcher waits there
while the work runs. It must be gone before the last message is sent: that send itself produces
an `http.disconnect`, and whoever reacts to it cancels the send half way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2p_mesh.core.bursts import Bursts

T = TypeVar("T")

Write = Callable[[bytes], Awaitable[None]]
WriteNow = Callable[[bytes], bool]
"""Writes all of it without waiting, or gives False and has written nothing."""

WRITE_NOW = "meshnode.write_now"
"""An extension of ASGI, which the server offers in the scope: a WriteNow for more of a body that is
being sent. Whoever wraps `send` does not see it.
"""

DONE = b"data: [DONE]\n\n"
"""The last event of a stream that ended well."""

PENDING_LIMIT = 65_536
"""Bytes that may wait for a slow client; then its answer waits too."""

_EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a reverse proxy would otherwise hold events back
}


class ClientGone(Exception):
    """The client left; nobody reads what would be sent."""


def event(data: bytes) -> bytes:
    """A server-sent event of one line."""
    return b"data: " + data + b"\n\n"


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns or raises; ClientGone, and `work` cancelled, if the client leaves.

    The body must have been read: this owns `receive`.
    """
    is_gone = False

    async def watch(cancel: Callable[[], None]) -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        cancel()

    result = await _beside(work, watch)
    if is_gone or result is None:
        raise ClientGone
    return result[0]


async def _beside(
    work: Callable[[], Awaitable[T]],
    companion: Callable[[Callable[[], None]], Awaitable[None]],
) -> tuple[T] | None:
    """Runs `companion(cancel)` while `work` runs; None if it cancelled the work.

    An error of the work comes out as it is, not in the group that a nursery makes of it.
    """
    result: tuple[T] | None = None
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(companion, nursery.cancel_scope.cancel)
        try:
            result = (await work(),)
        except Exception as error:  # noqa: BLE001  raised again outside the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result


class Deferred:
    """A response that is made while the client waits, and not at all once it has left."""

    def __init__(self, make: Callable[[], Awaitable[Response]]) -> None:
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await until_disconnect(receive, self._make)
        except ClientGone:
            return
        await response(scope, receive, send)


class EventStream:
    """A response that grows. Its head goes out with the first write, so that an error before
    it can still become a status.
    """

    def __init__(
        self, run: Callable[[Body], Awaitable[None]], headers: Mapping[str, str] | None = None
    ) -> None:
        self._run = run
        headers = {**_EVENT_STREAM, **(headers or {})}
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body(self._headers, scope, send)
        try:
            await until_disconnect(receive, partial(self._run, body))
        except ClientGone:
            return
        await body.end()


class Body:
    """The body of a response, as it is written; a Write."""

    def __init__(self, headers: list[tuple[bytes, bytes]], scope: Scope, send: Send) -> None:
        self._headers = headers
        self._send = send
        self._now: WriteNow = scope.get("extensions", {}).get(WRITE_NOW, _never)
        self._is_begun = False

    async def __call__(self, data: bytes) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def now(self, data: bytes) -> bool:
        """A WriteNow."""
        return self._is_begun and self._now(data)

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self) -> None:
        if not self._is_begun:
            self._is_begun = True
            head = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(head)


def _never(data: bytes) -> bool:
    return False


class Outbox:
    """Joins into one write whatever comes while another write is under way, or in one turn of the
    loop: answers give what is ready without a turn for each delta. What comes alone is written at
    once, which saves a turn for each token of a slow answer.
    """

    def __init__(self, write: Write, now: WriteNow = _never) -> None:
        self._write = write
        self._now = now
        self._pending = bytearray()
        self._is_writing = False
        self._bursts = Bursts()
        self._filled = trio.Event()
        self._written = trio.Event()

    async def put(self, data: bytes) -> None:
        """Takes data for the next write; waits while too much waits already."""
        if self._is_alone():
            await self._write(data)
            return
        self._pending += data
        self._filled.set()
        while len(self._pending) > PENDING_LIMIT:
            await self._written.wait()

    def put_nowait(self, data: bytes) -> bool:
        """Writes data at once, if it comes alone and can be written whole; else nothing, and it is
        to be `put`.
        """
        is_written = self._is_alone() and (not data or self._now(data))
        if not is_written:
            self._bursts.refused()
        return is_written

    def _is_alone(self) -> bool:
        is_alone = self._bursts.is_alone(trio.current_time())
        return is_alone and not self._pending and not self._is_writing

    async def fill(self, work: Callable[[Outbox], Awaitable[None]]) -> None:
        """Runs `work` and writes what it puts in, until all of it is written."""

        async def to_the_end() -> None:
            await work(self)
            await self._flush()

        await _beside(to_the_end, self._drain)

    async def _flush(self) -> None:
        while self._pending or self._is_writing:
            await self._written.wait()

    async def _drain(self, _cancel: Callable[[], None]) -> None:
        while True:
            await self._filled.wait()
            data, self._pending, self._is_writing = bytes(self._pending), bytearray(), True
            self._filled = trio.Event()
            await self._write(data)
            self._is_writing = False
            self._written.set()
            self._written = trio.Event()
