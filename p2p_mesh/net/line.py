"""The stream on which a peer is pinged: what was sent, and what came back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import trio

from p2p_mesh.core.health import Down, Ping, Pong
from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net.protocols import Stream

DEADLINE = 5.0
"""Seconds to open a stream, and to send a ping."""

_UNANSWERED = 8
"""Pings without a pong, of which it is known when they were sent."""


class Line:
    """Pings and hints to one peer, and its pongs."""

    def __init__(self, stream: Stream) -> None:
        self.peer = stream.peer
        self.reading = trio.CancelScope()
        self._stream = stream
        self._opened = trio.current_time()
        self._count = 0
        self._pongs = 0
        self._sent: OrderedDict[int, float] = OrderedDict()

    async def ping(self) -> None:
        self._count += 1
        self._sent[self._count] = trio.current_time()
        if len(self._sent) > _UNANSWERED:
            self._sent.popitem(last=False)
        await self._tell(Ping(number=self._count))

    async def hint(self, peer: PeerId) -> None:
        with suppress(Unavailable):
            await self._tell(Down(peer=peer))

    async def _tell(self, message: Ping | Down) -> None:
        try:
            with deadline(self.peer):
                await self._stream.tell(message)
        except BaseException:
            # Half a message may be on its way: this stream is good for nothing more.
            self.cut()
            raise

    async def hear(self) -> tuple[Pong, float | None]:
        """A pong, and how many seconds it took, where that is still known."""
        pong: Pong = await self._stream.hear(Pong)
        self._pongs += 1
        if pong.number > self._count or self._pongs > self._count:
            raise RemoteError(f"{self.peer} answers a ping that nobody sent")
        sent = self._sent.pop(pong.number, None)
        return pong, None if sent is None else trio.current_time() - sent

    def was_good(self) -> bool:
        """Whether it is worth opening another one: this one did not fail at once."""
        return self._pongs > 0 and trio.current_time() - self._opened > 1.0

    def cut(self) -> None:
        """Ends the stream, by way of its reader."""
        self.reading.cancel()

    async def reset(self) -> None:
        await self._stream.reset()


@contextmanager
def deadline(peer: PeerId) -> Iterator[None]:
    """Raises Unavailable where its body takes too long."""
    try:
        with trio.fail_after(DEADLINE):
            yield
    except trio.TooSlowError as error:
        raise Unavailable(f"{peer} took nothing for {DEADLINE:g} s") from error
