"""A stream between two parts of one node: what serve.backend.Stream is between two nodes.

The first stage's lease goes over one, so that a coordinator need not tell its own stage from
others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import trio

from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import MeshError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Stream

MOST_FRAMES = 1024
"""That wait for a reader."""


class End:
    """One end of a stream; a serve.backend.Stream."""

    def __init__(self) -> None:
        self._other = self
        self._frames: deque[bytes] = deque()
        self._sink: Callable[[bytes], None] | None = None
        self._over: MeshError | None = None
        self._came = trio.Event()

    async def send(self, frame: bytes) -> None:
        self.send_nowait(frame)
        await trio.lowlevel.checkpoint()

    def send_nowait(self, frame: bytes) -> bool:
        self._other._hear(frame)
        return True

    async def receive(self) -> bytes:
        while not self._frames:
            await self._more()
        return self._frames.popleft()

    async def listen(self, hear: Callable[[bytes], None]) -> None:
        while self._frames:
            hear(self._frames.popleft())
        self._sink = hear
        try:
            while True:
                await self._more()
        finally:
            self._sink = None

    def close(self, error: MeshError | None = None) -> None:
        """Ends both directions; what was sent before can still be received."""
        for end in (self, self._other):
            end._over = end._over or error or Unavailable("the stream was closed")
            end._came.set()

    def _hear(self, frame: bytes) -> None:
        if self._over is not None:
            raise self._over
        if self._sink is not None:
            try:
                self._sink(frame)
            except MeshError as error:  # of whoever listens, and raised there
                self._over = error
                self._came.set()
            return
        if len(self._frames) >= MOST_FRAMES:
            raise Unavailable("nobody takes what is sent")
        self._frames.append(frame)
        self._came.set()

    async def _more(self) -> None:
        if self._over is not None:
            raise self._over
        self._came = trio.Event()
        await self._came.wait()


def pipe() -> tuple[End, End]:
    """Both ends of a stream."""
    one, other = End(), End()
    one._other, other._other = other, one
    return one, other


@asynccontextmanager
async def within(
    serve: Callable[[Stream], Awaitable[None]],
) -> AsyncIterator[Stream]:
    """A stream to this node itself, served as the network would serve it."""
    ours, theirs = pipe()

    async def answer() -> None:
        try:
            await serve(theirs)
        except MeshError as error:
            with suppress(MeshError):
                theirs.send_nowait(encode(ErrorMessage.of(error)))
        finally:
            theirs.close()

    with bare():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                yield ours
            finally:
                ours.close()
                nursery.cancel_scope.cancel()
