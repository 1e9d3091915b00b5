"""The packages of this node, and where it gets the parts that it lacks.

What is missing comes from members that serve it, and else from the hub. Nothing is fetched
beyond --max-disk, nor, where demand alone wants it, without a word of --fetch-allow.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import trio
from msgspec.structs import replace

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import (
    MAX_MANIFEST,
    MAX_PIECES,
    Artifact,
    Manifest,
    PackageRef,
    pieces_of,
)
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.reference import read_hub
from p2p_mesh.errors import MeshError, ModelError, Unavailable
from p2p_mesh.journal import Journal
from p2p_mesh.node.allowed import check_allowed, may_ask_hub
from p2p_mesh.node.fetching import Fetching
from p2p_mesh.node.library import Library
from p2p_mesh.node.transfers import Transfers
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.package.partial import Partial, Read
from p2p_mesh.serve.package.whole import is_whole, whole
from p2p_mesh.settings import Settings

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

MAX_PROBED = 32
"""Members that are asked for a package, though they do not announce it."""

Progress = Callable[[float], None]


class Used:
    """A package in the hands of a backend: implements serve.backend.Package. It is served for as
    long as somebody holds this.
    """

    def __init__(self, package: LocalPackage, artifacts: Artifacts, *, on_demand: bool) -> None:
        self.package = package
        self._artifacts = artifacts
        self._on_demand = on_demand

    @property
    def ref(self) -> PackageRef:
        return self.package.ref

    @property
    def manifest(self) -> Manifest:
        return self.package.manifest

    @property
    def metadata(self) -> Path:
        return self.package.metadata

    async def fetch(
        self, artifacts: Sequence[str], progress: Progress = lambda _: None
    ) -> Sequence[Path]:
        for _ in artifacts:
            await self._fetch(artifacts, progress)
            try:
                return await self.package.sources(artifacts)
            except ModelError:
                if not self.package.missing(artifacts):
                    raise
            # The pieces of one were right, and it was wrong, and is gone: the list of them lies.
            self.package.forget_pieces()
        await self._fetch(artifacts, progress)
        return await self.package.sources(artifacts)

    async def _fetch(self, artifacts: Sequence[str], progress: Progress) -> None:
        await self._artifacts.fetch(
            self.package, artifacts, on_demand=self._on_demand, progress=progress
        )

    async def fetch_ranges(
        self, wanted: Mapping[str, Sequence[tuple[int, int]]], progress: Progress = lambda _: None
    ) -> Mapping[str, Read]:
        return await self._artifacts.fetch_ranges(
            self.package, wanted, on_demand=self._on_demand, progress=progress
        )

    def room(self, size: int) -> AbstractAsyncContextManager[None]:
        return self._artifacts.room(self.package, size)

    async def whole(self, progress: Progress = lambda _: None) -> Path:
        beside = {one.path for one in self.manifest.projectors}
        paths = [one.path for one in self.manifest.artifacts if one.path not in beside]
        await self.fetch(paths, progress)
        size = 0 if is_whole(self.package) else self.manifest.total_bytes
        async with self.room(size):
            return await whole(self.package, progress)


class Artifacts:
    """The packages of one node, and their parts."""

    def __init__(
        self,
        settings: Settings,
        packages: Packages,
        hub: Hub,
        *,
        inventory: Inventory,
        files: Callable[[], Iterable[ModelFile]],
        loaded: Callable[[], Iterable[ModelFile]],
        rng: Random,
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        """`files`: the models that this node has as files; `loaded`: those that it serves now."""
        self._settings = settings
        self._packages = packages
        self._hub = hub
        self._inventory = inventory
        self._files = files
        self._rng = rng
        self._journal = journal
        self._changed = changed
        self._network: Network | None = None
        self.library = Library(
            settings,
            packages,
            loaded=loaded,
            is_alone=lambda: len(inventory) < 2,
            journal=journal,
            changed=changed,
        )
        self._turns: dict[str, trio.Lock] = {}
        self._transfers = Transfers(journal)
        self._reserved = 0

    def attach(self, network: Network) -> None:
        """The network is up."""
        self._network = network
        if self._settings.has_artifacts:
            network.artifacts.serve(self.library)

    # What backends get

    async def package(self, wanted: ModelFile | PackageRef, *, on_demand: bool = False) -> Used:
        """The package of a model of this node, or one that a peer names; its metadata is here.
        Raises ModelError for what is none, or may not be fetched, Unavailable where nobody has it.
        """
        if isinstance(wanted, PackageRef):
            package = await self._named(wanted)
        else:
            package = await self._packages.opened(wanted.path)
        used = Used(package, self, on_demand=on_demand)
        self.library.add(used)
        await self.fetch(package, [package.manifest.metadata.path], on_demand=on_demand)
        self._changed()
        return used

    async def _named(self, ref: PackageRef) -> LocalPackage:
        if not may_ask_hub(self._settings, ref):
            ref = replace(ref, hub="")
        found = await self._packages.find(ref)
        if found is not None and not _needs_pieces(found, ref):
            return found
        if found is None:
            manifest = await self._text(ref.manifest, ref.manifest, MAX_MANIFEST)
        else:
            manifest = found.manifest_bytes
        pieces = await self._text(ref.pieces, ref.manifest, MAX_PIECES) if ref.pieces else b""
        package = await self._packages.add(ref, manifest, pieces)
        return await self._of_own_file(package) or package

    async def _of_own_file(self, named: LocalPackage) -> LocalPackage | None:
        """The same package, where a model file of this node is what it was made of."""
        digest = named.manifest.source.sha256
        for model in self._files():
            if digest and model.digest == digest:
                found = await self._packages.opened(model.path)
                return found if found.ref.manifest == named.ref.manifest else None
        return None

    async def _text(self, sha256: str, manifest: Digest, limit: int) -> bytes:
        """A manifest, or the list of its pieces, from whoever serves it."""
        network, reason = self._network, "nobody of this mesh serves it"
        for peer in self._candidates(manifest):
            assert network is not None, "without it there are no candidates"
            try:
                async with network.artifacts.open(peer) as line:
                    if (data := await line.whole(Digest(sha256), limit)) is not None:
                        return data
            except MeshError as error:
                reason = str(error)
        raise Unavailable(f"the package {manifest} is not to be had: {reason}")

    def _candidates(self, manifest: Digest) -> Sequence[PeerId]:
        """Whom to ask: those that announce the package, then others that are connected."""
        network = self._network
        if network is None or not self._settings.has_artifacts:
            return ()
        announced = [
            offer.peer
            for offer in self._inventory.offers()
            if manifest in offer.announcement.packages and offer.peer != network.peer_id
        ]
        others = (peer for peer, one in network.members().items() if one.role == "member")
        more = sorted(set(others) - set(announced), key=lambda peer: network.rtt(peer) or 1.0)
        return (*announced, *more[:MAX_PROBED])

    def _is_announced(self, manifest: Digest, peer: PeerId) -> bool:
        offer = self._inventory.get(peer)
        return offer is not None and manifest in offer.announcement.packages

    # Fetching

    async def fetch(
        self,
        package: LocalPackage,
        paths: Iterable[str],
        *,
        on_demand: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        """Has these artifacts on this machine. Raises ModelError and Unavailable."""
        async with self._turn(package):
            while missing := _distinct(package.missing(paths)):
                if on_demand:
                    check_allowed(self._settings, package.ref, package.manifest)
                await self._fetch(package, missing, progress)
        progress(1.0)

    async def fetch_ranges(
        self,
        package: LocalPackage,
        wanted: Mapping[str, Sequence[tuple[int, int]]],
        *,
        on_demand: bool = False,
        progress: Progress = lambda _: None,
    ) -> Mapping[str, Read]:
        """What reads these artifacts, and is sure of these ranges. What peers do not send piece by
        piece is fetched whole. Raises ModelError and Unavailable.
        """
        away = {one.path for one in package.missing(wanted) if package.pieces is not None}
        some = Partial(package, {path: _pieces(package, path, wanted[path]) for path in away})
        async with self._turn(package):
            while (missing := await some.missing()) and self._candidates(package.ref.manifest):
                if on_demand:
                    check_allowed(self._settings, package.ref, package.manifest)
                await self._fetch_some(some, missing, progress)
                if await some.missing() == missing:
                    break
        whole = (wanted.keys() - away) | missing.keys()
        await self.fetch(package, whole, on_demand=on_demand, progress=progress)
        await package.sources(whole)
        return {path: package.reader(path) if path in whole else some.read(path) for path in wanted}

    @asynccontextmanager
    async def _turn(self, package: LocalPackage) -> AsyncIterator[None]:
        """One after the other fetches parts of a package."""
        lock = self._turns.setdefault(package.ref.manifest, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(package.ref.manifest, None)

    async def _fetch(
        self, package: LocalPackage, missing: Sequence[Artifact], progress: Progress
    ) -> None:
        size = sum(one.artifact_bytes for one in missing)
        fetching = self._plan(package, missing, size)
        async with self.room(package, size):
            work = partial(self._fetch_whole, fetching, package)
            await self._transfers.follow(fetching, work, progress)
        self._changed()

    async def _fetch_some(
        self, some: Partial, missing: Mapping[str, int], progress: Progress
    ) -> None:
        files = _distinct(map(some.manifest.artifact, missing))
        size = sum(missing[one.path] for one in files)
        fetching = self._plan(some, files, size)
        async with self.room(some, size):
            await self._transfers.follow(fetching, partial(_run, fetching, some), progress)

    @asynccontextmanager
    async def room(self, package: LocalPackage | Partial, size: int) -> AsyncIterator[None]:
        """Around the writing of so many bytes. Raises ModelError where --max-disk forbids them."""
        if size:
            await self._check_disk(package, size)
        self._reserved += size
        try:
            yield
        finally:
            self._reserved -= size

    def _plan(
        self, package: LocalPackage | Partial, files: Sequence[Artifact], total: int
    ) -> Fetching:
        manifest, network = package.ref.manifest, self._network
        return Fetching(
            package,
            files,
            total=total,
            seek=lambda: self._candidates(manifest),
            is_announced=lambda peer: self._is_announced(manifest, peer),
            open_line=network.artifacts.open if network else _nobody,
            rng=self._rng,
            journal=self._journal,
        )

    async def _fetch_whole(self, fetching: Fetching, package: LocalPackage) -> bool:
        await fetching.run()
        left = package.missing(one.path for one in fetching.files)
        if left and fetching.has_lies and not package.ref.hub:
            # Nothing vouches for a list of pieces; for the file, the manifest does.
            package.forget_pieces()
            await fetching.run_one_by_one()
        await self._from_hub(fetching, package)
        return True

    async def _from_hub(self, fetching: Fetching, package: LocalPackage) -> None:
        """What no peer has sent."""
        left = package.missing(one.path for one in fetching.files)
        if not left:
            return
        if not package.ref.hub:
            what = "sends a right" if fetching.has_lies else "serves"
            raise Unavailable(
                f"no peer {what} {left[0].path} of {package.manifest.model_id}, and it is "
                "published nowhere that was named here (--fetch-allow hf://NAMESPACE/REPOSITORY)"
            )
        name = await self._hub.resolve(read_hub(package.ref.hub))  # a commit never changes
        for one in left:
            file = await self._hub.download(
                name, one.path, size=one.artifact_bytes, progress=fetching.by_hub(one)
            )
            await package.adopt(one.path, file)

    async def _check_disk(self, package: LocalPackage | Partial, size: int) -> None:
        limit = self._settings.disk_limit
        if limit is None:
            return
        taken = await self._packages.usage() + self._reserved
        if taken + size > limit:
            raise ModelError(
                f"{size / 1e9:.2f} GB more are wanted for {package.manifest.model_id}, and "
                f"{taken / 1e9:.2f} of {limit / 1e9:.2f} GB are taken: raise --max-disk, or clean "
                "up with `meshnode package prune`"
            )

    def status(self) -> list[dict[str, Any]]:
        """What is being fetched now, as plain values."""
        return self._transfers.status()


async def _run(fetching: Fetching, some: Partial) -> bool:
    await fetching.run()
    return not await some.missing()


def _pieces(package: LocalPackage, path: str, ranges: Sequence[tuple[int, int]]) -> Collection[int]:
    return pieces_of(package.manifest.artifact(path).artifact_bytes, ranges)


def _distinct(files: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """One of those that have the same content; the others come in another round."""
    return tuple({one.sha256: one for one in files}.values())


def _needs_pieces(package: LocalPackage, ref: PackageRef) -> bool:
    """Something is to be fetched, by another list than the one at hand, which may be wrong: the
    manifest does not say which is right.
    """
    if ref.pieces in ("", package.ref.pieces):
        return False
    return bool(package.missing(one.path for one in package.manifest.artifacts))


def _nobody(peer: PeerId) -> Any:
    raise Unavailable("this node is not connected yet", retry_after=1.0)
