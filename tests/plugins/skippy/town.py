"""Nodes that hold stages, joined in memory: a mesh without a network. The workers are processes of
stand_in.py, unless a test asks for others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio
from meshnode_skippy.backend import Skippy
from meshnode_skippy.local import End, pipe

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import Manifest, PackageRef
from p2p_mesh.core.records import Announcement, ModelFile, Resources
from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import MeshError, ModelError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Limits, Package, Stream
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests

STAND_IN = "tests.plugins.skippy.stand_in"
GIGABYTE = 10**9


class Whole:
    """A package that is here; a serve.backend.Package."""

    def __init__(self, package: LocalPackage) -> None:
        self._package = package
        self.fetched: list[Sequence[str]] = []
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
        self.fetched.append(artifacts)
        progress(1.0)
        return await self._package.sources(artifacts)

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        self.rooms.append(size)
        if size > self.most:
            raise ModelError("raise --max-disk")
        yield

    async def fetch_ranges(
        self,
        wanted: Mapping[str, Sequence[tuple[int, int]]],
        progress: Callable[[float], None] = lambda _: None,
    ) -> Mapping[str, Callable[[int, int], bytes]]:
        raise Unavailable("whole parts of it are wanted here")

    async def whole(self, progress: Callable[[float], None] = lambda _: None) -> Path:
        raise Unavailable("only parts of it are wanted here")


@dataclass
class Town:
    """Its nodes know one another, and all have the same packages."""

    packages: Packages
    worker: str = STAND_IN
    nodes: dict[PeerId, Neighbour] = field(default_factory=dict)
    streams: list[tuple[PeerId, PeerId, str, End]] = field(default_factory=list)
    """Those that are open: from whom, to whom, for what."""

    def node(self, name: str, memory: int = GIGABYTE) -> Neighbour:
        made = self.nodes[PeerId(name)] = Neighbour(self, PeerId(name), memory)
        made.skippy.attach(made)
        return made

    def cut(self, peer: PeerId, protocol: str = "") -> None:
        """Ends the streams from and to a node."""
        for start, end, kind, stream in tuple(self.streams):
            if peer in (start, end) and protocol in ("", kind):
                stream.close(Unavailable("the stream was cut"))


class Neighbour:
    """A node of a town; a serve.backend.Mesh."""

    def __init__(self, town: Town, peer: PeerId, memory: int) -> None:
        self.town = town
        self.peer = peer
        self.memory = Memory(Resources(memory_total=memory, memory_free=memory, threads=2))
        self.skippy = Skippy(worker=town.worker)
        self.limited = Limits()
        self.said: list[tuple[str, str]] = []
        self.package_of: dict[str, Whole] = {}
        self._served: dict[str, Callable[[Stream, PeerId], Awaitable[None]]] = {}

    def me(self) -> PeerId:
        return self.peer

    def listens(self) -> str | None:
        return "127.0.0.1"

    def name(self) -> str:
        return str(self.peer)

    def resources(self) -> Resources:
        return self.memory.free()

    def limits(self) -> Limits:
        return self.limited

    def say(self, event: str, text: str) -> None:
        self.said.append((event, text))

    def round_trip(self, peer: PeerId) -> float | None:
        return 0.001

    async def package(self, wanted: ModelFile | PackageRef) -> Package:
        if isinstance(wanted, ModelFile):
            found = await self.town.packages.opened(wanted.path)
        else:
            held = await self.town.packages.find(wanted)
            if held is None:
                raise Unavailable("nobody has that package")
            found = held
        return self.package_of.setdefault(found.ref.manifest, Whole(found))

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        return [
            (peer, one.announcement()) for peer, one in self.town.nodes.items() if one is not self
        ]

    def announcement(self) -> Announcement:
        return Announcement(
            sequence=(1, 1), issued_at=0, lifetime=60, name=self.peer, version="0",
            resources=self.resources(), backends=("skippy",), addresses=("/ip4/127.0.0.1/tcp/1",),
        )  # fmt: skip

    def serve(self, protocol: str, answer: Callable[[Stream, PeerId], Awaitable[None]]) -> None:
        self._served[protocol] = answer

    def lease(self, memory_bytes: int) -> AbstractAsyncContextManager[None]:
        return self.memory.lease(memory_bytes)

    @asynccontextmanager
    async def open_stream(self, peer: PeerId, protocol: str) -> AsyncIterator[Stream]:
        """As the network does it: what the other side raises is told, and its end is an end."""
        other = self.town.nodes.get(peer)
        if other is None:
            raise Unavailable(f"{peer} is not known")
        ours, theirs = pipe()
        entry = self.peer, peer, protocol, ours
        self.town.streams.append(entry)
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(other._answer, protocol, theirs, self.peer)
                try:
                    yield ours
                finally:
                    self.town.streams.remove(entry)
                    ours.close()

    async def _answer(self, protocol: str, stream: End, peer: PeerId) -> None:
        try:
            await self._served[protocol](stream, peer)
        except MeshError as error:
            with suppress(MeshError):
                stream.send_nowait(encode(ErrorMessage.of(error)))
        finally:
            stream.close()

    def vanish(self) -> None:
        """All at once, as a node that is killed: it is no longer known, and its streams end."""
        del self.town.nodes[self.peer]
        self.town.cut(self.peer)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits for a condition; fails in time."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what it waits for knows nothing of it
            await trio.sleep(0.005)


def packages(folder: Path) -> Packages:
    return Packages(folder / "packages", Digests(folder / "digests.json"))
