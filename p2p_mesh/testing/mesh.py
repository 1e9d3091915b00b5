"""A mesh of one: what a backend sees where there is nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.records import Announcement
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Stream


class NoMesh:
    """Implements serve.backend.Mesh."""

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        return ()

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        raise Unavailable(f"{peer} is not known")

    def serve(self, protocol: str, answer: Callable[[Stream, PeerId], Awaitable[None]]) -> None:
        return  # nobody will ever open one

    @asynccontextmanager
    async def lease(self, memory_bytes: int) -> AsyncIterator[None]:
        yield

    async def fetch(self, digest: Digest) -> Path:
        raise Unavailable(f"nobody has {digest}")
