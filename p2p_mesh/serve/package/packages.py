"""The packages of this machine: those that were opened, and the cache in which manifests, fetched
artifacts and the hashes of GGUF files are kept.

The cache has a folder for each package, by the SHA-256 of its manifest. A node that uses one holds
a lock in it, so that `meshnode package prune` leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import trio

from p2p_mesh.core.package import MANIFEST, PIECES, PackageRef, SourceFile, SourceModel
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package import prune
from p2p_mesh.serve.package.blob import Job, Stopped
from p2p_mesh.serve.package.folder import INDEX, ORIGIN, Origin
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.source import Source, read_source
from p2p_mesh.serve.package.virtual import Layout, lay_out, write
from p2p_mesh.serve.store import Digests

FORM = "1"
"""Of virtual artifacts: raised whenever another version would make other bytes of the same file."""

Progress = Callable[[float], None]


class Packages:
    """One for each node. Its async methods do their work in threads."""

    def __init__(self, cache: Path, digests: Digests) -> None:
        self.cache = cache
        self._digests = digests
        self._local = partial(LocalPackage, cache=cache, digester=digests.file)
        self._opened: dict[str, LocalPackage] = {}
        self._turns: dict[str, threading.Lock] = {}

    def held(self) -> tuple[LocalPackage, ...]:
        """Those that were opened."""
        return tuple(self._opened.values())

    async def opened(
        self, reference: str | Path, progress: Progress = lambda _: None
    ) -> LocalPackage:
        """The package in a folder, or that a GGUF file is (by its first file, where it is split).
        Such a file is read once for its hashes, which are remembered. Raises ModelError.
        """
        job = Job(lambda done: trio.from_thread.run_sync(progress, done))
        try:
            return await trio.to_thread.run_sync(
                partial(self.open, Path(reference), job), abandon_on_cancel=True
            )
        finally:
            job.stop()

    async def find(self, ref: PackageRef) -> LocalPackage | None:
        """One that was opened, or is in the cache, by its manifest."""
        return await trio.to_thread.run_sync(self._find, ref)

    async def add(self, ref: PackageRef, manifest: bytes, pieces: bytes = b"") -> LocalPackage:
        """A package by what a peer or a hub has sent of it. Raises ModelError where that is not
        what the reference means.
        """
        return await trio.to_thread.run_sync(self._add, ref, manifest, pieces)

    async def usage(self) -> int:
        """The bytes that fetched artifacts and composed stages take."""
        return await trio.to_thread.run_sync(prune.usage, self.cache)

    def open(self, path: Path, job: Job) -> LocalPackage:
        """As `opened`, in this thread."""
        try:
            if path.is_dir():
                return self._keep(self._of_folder(path))
            return self._keep(self._of_file(path, job))
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        except ModelError as error:
            raise ModelError(f"{path} cannot be used: {error}") from error
        except Stopped:
            raise ModelError(f"{path} was not read to its end") from None

    def _of_folder(self, path: Path) -> LocalPackage:
        manifest, pieces = folders.read_manifest_of(path), folders.read_pieces_of(path)
        package = self._local(manifest, pieces, home=path, hub=folders.read_origin(path).hub)
        if path.resolve() == package.folder.resolve():
            package.home = None  # its own folder in the cache, in which it may write
        return package

    def _of_file(self, path: Path, job: Job) -> LocalPackage:
        source = read_source(path)
        layout = lay_out(source)
        with self._turns.setdefault(_key(source), threading.Lock()):  # who comes second remembers
            return self._of_source(source, layout, path, job)

    def _of_source(self, source: Source, layout: Layout, path: Path, job: Job) -> LocalPackage:
        package = self._remembered(source, layout, path)
        if package is None:
            manifest, pieces = write(
                layout, job.hash(layout.blobs), describe_source(source, self._digests)
            )
            package = self._local(manifest, pieces, virtual=layout.blobs, original=path)
        origin = Origin(file=str(path.absolute()), stamps=_stamps(source))
        metadata = package.manifest.metadata.path
        self._write(package, origin, {metadata: _bytes(package, metadata)})
        self._remember(source, package.ref.manifest)
        return package

    def _find(self, ref: PackageRef) -> LocalPackage | None:
        if (known := self._opened.get(ref.manifest)) is not None:
            return known
        folder = self.cache / ref.manifest
        if not folders.is_package(folder):
            return None
        origin = folders.read_origin(folder)
        with suppress(ModelError):  # damaged: as if it had never been there
            if origin.file and _is_as_it_was(origin):
                return self.open(Path(origin.file), Job())
            return self.open(folder, Job())
        return None

    def _add(self, ref: PackageRef, manifest: bytes, pieces: bytes) -> LocalPackage:
        digest = hashlib.sha256(manifest).hexdigest()
        if digest != ref.manifest:
            raise ModelError(f"the manifest has the SHA-256 {digest}, and not {ref.manifest}")
        if pieces and hashlib.sha256(pieces).hexdigest() != ref.pieces:
            raise ModelError(f"the list of its pieces has not the SHA-256 {ref.pieces}")
        origin = folders.read_origin(self.cache / digest)
        hub = ref.hub or origin.hub
        package = self._local(manifest, pieces, hub=hub)
        known = self._opened.get(digest)
        if known is not None and (not _lacks(known) or package.pieces in (None, known.pieces)):
            return known  # a list of pieces from elsewhere is no better than one's own
        package.home = known.home if known is not None else None
        self._write(package, msgspec.structs.replace(origin, hub=hub), {})
        self._opened.pop(digest, None)
        return self._keep(package)

    def _write(self, package: LocalPackage, origin: Origin, more: dict[str, bytes]) -> None:
        texts = {PIECES: package.pieces_bytes, ORIGIN: msgspec.json.encode(origin), **more}
        try:
            folders.keep(package.folder, {**texts, MANIFEST: package.manifest_bytes})
        except OSError as error:
            raise ModelError(f"{package.folder} cannot be written: {error.strerror}") from error

    def _keep(self, package: LocalPackage) -> LocalPackage:
        """Of two of one manifest, the one that has more."""
        known = self._opened.get(package.ref.manifest)
        if known is not None and _worth(known) >= _worth(package):
            return known
        prune.hold(package)
        self._opened[package.ref.manifest] = package
        return package

    def _remembered(self, source: Source, layout: Layout, path: Path) -> LocalPackage | None:
        """By its hashes as they were learned before; None where they were not, or are damaged."""
        digest = self._index().get(_key(source), "")
        folder = self.cache / (digest or "none")
        try:
            manifest, pieces = folders.read_manifest_of(folder), folders.read_pieces_of(folder)
            found = self._local(manifest, pieces, virtual=layout.blobs, original=path)
        except ModelError:
            return None
        return found if found.ref.manifest == digest and found.pieces else None

    def _remember(self, source: Source, manifest: str) -> None:
        index = self._index()
        if index.get(_key(source)) != manifest:
            data = json.dumps({**index, _key(source): manifest}).encode()
            folders.write_aside(self.cache / INDEX, data)

    def _index(self) -> dict[str, str]:
        """What is remembered; an index that is damaged is one that is empty."""
        try:
            return msgspec.json.decode((self.cache / INDEX).read_bytes(), type=dict[str, str])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}


def describe_source(source: Source, digests: Digests) -> SourceModel:
    """By content alone: the names of files are not the same on every node."""
    count = len(source.parts)
    names = ["model.gguf"] if count == 1 else [
        f"model-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)
    ]  # fmt: skip
    files = tuple(
        SourceFile(path=name, size_bytes=part.file.size, sha256=digests.file(part.file.path))
        for name, part in zip(names, source.parts, strict=True)
    )
    return SourceModel(
        path=names[0], sha256=files[0].sha256 or "", primary_file=names[0], files=files
    )


def _stamps(source: Source) -> tuple[str, ...]:
    return tuple(part.file.key for part in source.parts)


def _key(source: Source) -> str:
    return "|".join((FORM, *_stamps(source)))


def _is_as_it_was(origin: Origin) -> bool:
    try:
        return _stamps(read_source(Path(origin.file))) == origin.stamps
    except (ModelError, OSError):
        return False


def _bytes(package: LocalPackage, path: str) -> bytes:
    blob = package.blob(path)
    return b"" if blob is None else blob.read(0, blob.size)


def _worth(package: LocalPackage) -> tuple[int, bool]:
    return -_lacks(package), package.pieces is not None


def _lacks(package: LocalPackage) -> int:
    return len(package.missing(one.path for one in package.manifest.artifacts))
