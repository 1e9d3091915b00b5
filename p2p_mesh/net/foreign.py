"""The protocols of backends: streams that a plugin opens to members, and answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import MeshError
from p2p_mesh.net.protocols import (
    FOREIGN_LIMIT,
    Drained,
    Protocol,
    Protocols,
    Stream,
    drained,
)


class Foreign:
    """`using` holds a peer that is connected, that answers, and that is watched meanwhile."""

    def __init__(
        self, protocols: Protocols, using: Callable[[PeerId], AbstractAsyncContextManager[None]]
    ) -> None:
        self._protocols, self._using = protocols, using
        self._open: dict[PeerId, set[Drained]] = {}

    @asynccontextmanager
    async def open(
        self, peer: PeerId, protocol: str, limit: int = FOREIGN_LIMIT
    ) -> AsyncIterator[Drained]:
        """A stream of a backend's own protocol to a member. Raises Unavailable."""
        opening = self._protocols.open(peer, Protocol(protocol, limit))
        async with self._using(peer), opening as stream, drained(stream) as frames:
            streams = self._open.setdefault(peer, set())
            streams.add(frames)
            try:
                yield frames
            finally:
                streams.discard(frames)
                if not streams:
                    self._open.pop(peer, None)

    def serve(
        self,
        protocol: str,
        serve: Callable[[Drained, Member], Awaitable[None]],
        limit: int = FOREIGN_LIMIT,
    ) -> None:
        """Answers the streams of a backend's own protocol that members open."""

        async def attend(stream: Stream, member: Member) -> None:
            async with drained(stream) as frames:
                await serve(frames, member)

        self._protocols.serve(Protocol(protocol, limit), attend)

    def fail(self, peer: PeerId, error: MeshError) -> None:
        """Ends the streams that are open to a peer."""
        for frames in tuple(self._open.get(peer, ())):
            frames.fail(error)
