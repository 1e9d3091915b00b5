"""Nodes in one process that know one another, for tests of what shards say to each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from meshnode_skippy.local import End, pipe

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import Manifest, PackageRef
from p2p_mesh.core.records import Announcement, Held, ModelFile, Resources
from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import MeshError, ModelError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Limits, Package, Stream
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests

GIGABYTE = 10**9


class Local:
    """A package that is here; a serve.backend.Package."""

    def __init__(self, package: LocalPackage) -> None:
        self._package = package
        self.asked: list[Mapping[str, Sequence[tuple[int, int]]]] = []
        self.rooms: list[int] = []
        self.most = 1 << 40
        """Bytes that there is room for at a time."""

    @property
    def ref(self) -> PackageRef:
        return self._package.ref

    @property
    def manifest(self) -> Manifest:
        return self._package.manifest

    @property
    def metadata(self) -> Path:
        return self._package.metadata

    async def fetch(
        self, artifacts: Sequence[str], progress: Callable[[float], None] = lambda _: None
    ) -> Sequence[Path]:
        return await self._package.sources(artifacts)

    async def fetch_ranges(
        self,
        wanted: Mapping[str, Sequence[tuple[int, int]]],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Mapping[str, Callable[[int, int], bytes]]:
        await trio.lowlevel.checkpoint()
        self.asked.append(wanted)
        progress(1.0)
        return {path: self._package.reader(path) for path in wanted}

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        self.rooms.append(size)
        if size > self.most:
            raise ModelError("raise --max-disk")
        yield

    async def whole(self, progress: Callable[[float], None] = lambda _: None) -> Path:
        assert self._package.original is not None
        return self._package.original


@dataclass
class Street:
    """All nodes have the same files."""

    folder: Path
    nodes: dict[PeerId, Neighbour] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.packages = Packages(self.folder / "packages", Digests(self.folder / "digests.json"))

    def node(self, name: str, *held: Held, memory: int = GIGABYTE) -> Neighbour:
        made = self.nodes[PeerId(name)] = Neighbour(self, PeerId(name), memory)
        made.held = held
        return made

    async def package(self, model: ModelFile) -> Local:
        return Local(await self.packages.opened(model.path))


class Neighbour:
    """A node of a street; a serve.backend.Mesh."""

    def __init__(self, street: Street, peer: PeerId, memory: int) -> None:
        self.peer = peer
        self.memory = Memory(Resources(memory_total=memory, memory_free=memory, threads=2))
        self.said: list[tuple[str, str]] = []
        self.held: tuple[Held, ...] = ()
        self.backends: tuple[str, ...] = ("expert_shards",)
        self.packages: dict[str, Local] = {}
        self._street = street
        self._served: dict[str, Callable[[Stream, PeerId], Awaitable[None]]] = {}

    def me(self) -> PeerId:
        return self.peer

    def name(self) -> str:
        return f"node {self.peer}"

    def listens(self) -> str | None:
        return None

    def resources(self) -> Resources:
        return self.memory.free()

    def limits(self) -> Limits:
        return Limits()

    def say(self, event: str, text: str) -> None:
        self.said.append((event, text))

    def round_trip(self, peer: PeerId) -> float | None:
        return 0.001

    async def package(self, wanted: ModelFile | PackageRef) -> Package:
        assert isinstance(wanted, ModelFile)
        if wanted.path not in self.packages:
            self.packages[wanted.path] = await self._street.package(wanted)
        return self.packages[wanted.path]

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        others = self._street.nodes.items()
        return [(peer, one.announcement()) for peer, one in others if one is not self]

    def announcement(self) -> Announcement:
        return Announcement(
            sequence=(1, 1), issued_at=0, lifetime=60, name=self.name(), version="0",
            resources=self.resources(), held=self.held, backends=self.backends,
        )  # fmt: skip

    def serve(self, protocol: str, answer: Callable[[Stream, PeerId], Awaitable[None]]) -> None:
        self._served[protocol] = answer

    def lease(self, memory_bytes: int) -> AbstractAsyncContextManager[None]:
        return self.memory.lease(memory_bytes)

    @asynccontextmanager
    async def open_stream(self, peer: PeerId, protocol: str) -> AsyncIterator[Stream]:
        """As the network does it: what the other side raises is told, and its end is an end."""
        other = self._street.nodes.get(peer)
        if other is None or protocol not in other._served:
            raise Unavailable(f"{peer} does not speak {protocol}")
        ours, theirs = pipe()
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other._answer, protocol, theirs, self.peer)
                try:
                    yield ours
                finally:
                    ours.close()
                    nursery.cancel_scope.cancel()

    async def _answer(self, protocol: str, stream: End, peer: PeerId) -> None:
        try:
            await self._served[protocol](stream, peer)
        except MeshError as error:
            with suppress(MeshError):
                stream.send_nowait(encode(ErrorMessage.of(error)))
        finally:
            stream.close()
