"""The packages that this node serves to members: those that something here is loaded from, those
that a backend holds, and those of --share.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol as Shape

import trio

from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import MAX_PACKAGES, ModelFile
from p2p_mesh.errors import MeshError, ModelError, Unavailable
from p2p_mesh.journal import Journal
from p2p_mesh.serve import store
from p2p_mesh.serve.package.blob import Blob, Segment
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.settings import Settings


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is served, read in threads."""

    blob: Blob
    spoilt: Callable[[], None]
    """Told when it cannot be read any more."""

    @property
    def size(self) -> int:
        return self.blob.size

    async def read(self, offset: int, length: int) -> bytes:
        try:
            return await trio.to_thread.run_sync(self.blob.read, offset, length)
        except ModelError as error:
            self.spoilt()
            raise Unavailable(str(error)) from error


class User(Shape):
    """Whoever holds a package."""

    @property
    def package(self) -> LocalPackage: ...


class Library:
    """Implements net.artifacts.Library."""

    def __init__(
        self,
        settings: Settings,
        packages: Packages,
        *,
        loaded: Callable[[], Iterable[ModelFile]],
        is_alone: Callable[[], bool],
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        """`loaded`: the models that answer now. `is_alone`: there is nobody to serve."""
        self._settings = settings
        self._packages = packages
        self._loaded = loaded
        self._is_alone = is_alone
        self._journal = journal
        self._changed = changed
        self._shared: dict[str, LocalPackage] = {}
        self._kept: dict[str, LocalPackage | None] = {}
        """By the path of a loaded model; None: it is no package."""
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._spoilt: set[tuple[Digest, Digest]] = set()
        """Parts of packages whose files were changed since they were opened."""
        self._news = trio.Event()

    def add(self, user: User) -> None:
        """Serves a package for as long as somebody holds `user`."""
        self._users.add(user)

    def wake(self) -> None:
        """What is loaded here, or who is there, may have changed."""
        self._news.set()
        self._news = trio.Event()

    async def run(self) -> None:
        """Opens what is to be served, until cancelled."""
        if not self._settings.has_artifacts:
            return
        for reference in self._settings.share:
            await self._share(reference)
        while True:
            news = self._news
            await self._follow()
            await news.wait()

    async def _share(self, reference: str) -> None:
        try:
            path = await trio.to_thread.run_sync(store.find, reference, self._packages.cache)
            self._shared[reference] = await self._packages.opened(path)
        except MeshError as error:
            self._journal.warning("share_failed", f"--share {reference}: {error}")
        self._changed()

    async def _follow(self) -> None:
        """Opens the packages of the models that are loaded, once there is somebody to ask."""
        loaded = {model.path for model in self._loaded()}
        for path in self._kept.keys() - loaded:
            del self._kept[path]
        if self._is_alone():
            return
        for path in loaded - self._kept.keys():
            try:
                self._kept[path] = await self._packages.opened(path)
            except ModelError as error:
                self._kept[path] = None
                self._journal.debug("no_package", f"{path} is not served in parts: {error}")
            self._changed()

    def _served(self) -> Collection[LocalPackage]:
        """Each once. Two may have one manifest, and other lists of pieces."""
        kept = (one for one in self._kept.values() if one is not None)
        used = (one.package for one in self._users)
        return dict.fromkeys((*self._shared.values(), *kept, *used))

    def announced(self) -> tuple[Digest, ...]:
        """The packages of which this node says that it serves parts."""
        if not self._settings.has_artifacts:
            return ()
        return tuple(sorted({one.ref.manifest for one in self._served()})[:MAX_PACKAGES])

    def held(self, manifest: Digest) -> Collection[Digest]:
        packages = (one for one in self._served() if one.ref.manifest == manifest)
        return tuple({Digest(digest) for one in packages for digest in one.blobs()})

    def find(self, sha256: Digest) -> _File | None:
        for package in self._served():
            manifest = package.ref.manifest
            blob = None if (manifest, sha256) in self._spoilt else _blob(package, sha256)
            if blob is not None:
                return _File(blob, partial(self._spoilt.add, (manifest, sha256)))
        return None


def _blob(package: LocalPackage, sha256: Digest) -> Blob | None:
    for digest, text in (
        (package.ref.manifest, package.manifest_bytes),
        (package.ref.pieces, package.pieces_bytes),
    ):
        if digest == sha256:
            return Blob([Segment(len(text), text)])
    # Not by `blobs`: it looks at every file, and this is asked for each piece.
    paths = (one.path for one in package.manifest.artifacts if one.sha256 == sha256)
    return next(filter(None, map(package.blob, paths)), None)
