"""A mesh of one: what a backend sees where there is nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import Announcement, ModelFile, Resources
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Limits, Package, Stream


class NoMesh:
    """Implements serve.backend.Mesh."""

    def me(self) -> PeerId:
        raise Unavailable("there is no mesh")

    def name(self) -> str:
        return "alone"

    def listens(self) -> str | None:
        return None

    def resources(self) -> Resources:
        return Resources(memory_total=2**40, memory_free=2**40, threads=1)

    def limits(self) -> Limits:
        return Limits()

    def say(self, event: str, text: str) -> None:
        return  # there is no log

    def round_trip(self, peer: PeerId) -> float | None:
        return None

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        return ()

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        raise Unavailable(f"{peer} is not known")

    def serve(self, protocol: str, answer: Callable[[Stream, PeerId], Awaitable[None]]) -> None:
        return  # nobody will ever open one

    @asynccontextmanager
    async def lease(self, memory_bytes: int) -> AsyncIterator[None]:
        yield

    async def package(self, wanted: ModelFile | PackageRef) -> Package:
        raise Unavailable(f"nobody has {wanted}")
