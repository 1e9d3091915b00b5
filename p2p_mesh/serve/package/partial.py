"""Pieces of a package's artifacts, received without the rest: for who needs a few ranges of what no
machine has room for. What has come is checked and stays, and is part of the whole should that be
wanted later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from p2p_mesh.core.package import Artifact, Manifest, PackageRef, piece_range
from p2p_mesh.serve.package.incoming import Bytes, Incoming
from p2p_mesh.serve.package.local import LocalPackage

Read = Callable[[int, int], bytes]
"""A range of an artifact: its offset and length. Blocks; raises ModelError."""


class Partial:
    """Pieces of some artifacts, as whoever fetches sees them: in place of a LocalPackage. None of
    these artifacts is here whole.
    """

    def __init__(self, package: LocalPackage, wanted: Mapping[str, Collection[int]]) -> None:
        self._package = package
        self._wanted = wanted
        self._some: dict[str, Some] = {}

    @property
    def ref(self) -> PackageRef:
        return self._package.ref

    @property
    def manifest(self) -> Manifest:
        return self._package.manifest

    async def incoming(self, path: str) -> Some:
        """The same for all who ask, once it is known which of the pieces are here."""
        if path not in self._some:
            some = Some(await self._package.incoming(path), frozenset(self._wanted[path]))
            await some.check()
            self._some[path] = some
        return self._some[path]

    async def missing(self) -> Mapping[str, int]:
        """The artifacts of which something is to come, and how many bytes."""
        found = {path: (await self.incoming(path)).missing_bytes for path in self._wanted}
        return {path: size for path, size in found.items() if size}

    def read(self, path: str) -> Read:
        """Reads what has come of an artifact."""
        return self._some[path].read


class Some:
    """Some pieces of an artifact that is being received: in place of an Incoming."""

    def __init__(self, incoming: Incoming, wanted: frozenset[int]) -> None:
        self.is_finished = False
        self._incoming = incoming
        self._wanted = wanted

    @property
    def artifact(self) -> Artifact:
        return self._incoming.artifact

    @property
    def received(self) -> int:
        return self._size(self._wanted) - self.missing_bytes

    @property
    def missing_bytes(self) -> int:
        return self._size(self.missing())

    @property
    def read(self) -> Read:
        return self._incoming.read

    def missing(self) -> tuple[int, ...]:
        return tuple(one for one in self._incoming.missing() if one in self._wanted)

    async def check(self) -> None:
        await self._incoming.check(self._wanted)

    async def put(self, piece: int, data: Bytes) -> bool:
        return await self._incoming.put(piece, data)

    async def finish(self) -> bool:
        """The artifact gets its name only where nothing else of it is missing."""
        if self._incoming.missing():
            self.is_finished = not self.missing()
        else:
            self.is_finished = await self._incoming.finish()
        return self.is_finished

    async def forget(self) -> None:
        await self._incoming.forget()

    def _size(self, pieces: Collection[int]) -> int:
        size = self.artifact.artifact_bytes
        return sum(piece_range(size, number)[1] for number in pieces)
