"""A package of which this machine has all, some, or no artifacts: in a folder of the user's, in the
cache, or as ranges of a GGUF file.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import trio
from msgspec.structs import replace

from p2p_mesh.core.manifest import read_manifest, read_pieces
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import Artifact, PackageRef, check_artifact
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.blob import Blob, Segment, look_at, whole
from p2p_mesh.serve.package.incoming import Incoming
from p2p_mesh.serve.package.source import read_file

Digester = Callable[[Path], Digest]
"""The SHA-256 of a file, remembered."""


class LocalPackage:
    """Its manifest and piece list are here, and have been checked."""

    def __init__(
        self,
        manifest: bytes,
        pieces: bytes,
        *,
        cache: Path,
        digester: Digester,
        home: Path | None = None,
        virtual: Mapping[str, Blob] | None = None,
        original: Path | None = None,
        hub: str = "",
    ) -> None:
        """`home`: a folder of the user's, in which nothing is written. `virtual`: the artifacts
        that are ranges of GGUF files, of which `original` is the first. Raises ModelError.
        """
        digest = Digest(hashlib.sha256(manifest).hexdigest())
        self.manifest = read_manifest(manifest)
        self.manifest_bytes = manifest
        self.pieces_bytes = pieces
        self.pieces = read_pieces(pieces, self.manifest, digest) if pieces else None
        self.ref = PackageRef(
            manifest=digest,
            pieces=hashlib.sha256(pieces).hexdigest() if pieces else "",
            hub=hub,
        )
        self.folder = cache / digest
        self.stages = cache.parent / "stages" / digest
        self.home = home
        self.original = original
        self._virtual = virtual or {}
        self._digester = digester
        self._lock = threading.Lock()
        self._incoming: dict[str, Incoming] = {}

    @property
    def metadata(self) -> Path:
        """A GGUF file with all keys, the tokenizer too. Raises ModelError while it is not here."""
        return self.place(self.manifest.metadata.path)

    @property
    def is_virtual(self) -> bool:
        return bool(self._virtual)

    def place(self, path: str) -> Path:
        """The file that is an artifact. Raises ModelError where there is none."""
        if (found := self._file(self.manifest.artifact(path))) is None:
            raise ModelError(f"{path} of {self.manifest.model_id} is not here yet")
        return found

    def has(self, path: str) -> bool:
        return self.blob(path) is not None

    def missing(self, paths: Iterable[str]) -> tuple[Artifact, ...]:
        return tuple(self.manifest.artifact(path) for path in paths if not self.has(path))

    def blob(self, path: str) -> Blob | None:
        """The bytes of an artifact; None where it is not here."""
        if path in self._virtual:
            return self._virtual[path]
        file = self._file(self.manifest.artifact(path))
        try:
            return None if file is None else whole(look_at(file))
        except OSError:  # gone meanwhile
            return None

    def blobs(self) -> Mapping[str, Blob]:
        """All that can be read here, by its SHA-256: artifacts, the manifest, the piece list."""
        texts = {self.ref.manifest: self.manifest_bytes, self.ref.pieces: self.pieces_bytes}
        found = {digest: Blob([Segment(len(data), data)])
                 for digest, data in texts.items() if data}  # fmt: skip
        for one in self.manifest.artifacts:
            if (blob := self.blob(one.path)) is not None:
                found[one.sha256] = blob
        return found

    async def read(self, path: str, offset: int, length: int) -> bytes:
        """A range of an artifact. Raises Unavailable where it is not here, RequestError for a range
        that it has not.
        """
        return await trio.to_thread.run_sync(self.reader(path), offset, length)

    def reader(self, path: str) -> Callable[[int, int], bytes]:
        """What reads ranges of an artifact that is here. Raises Unavailable where it is not."""
        if (blob := self.blob(path)) is None:
            raise Unavailable(f"{path} of {self.manifest.model_id} is not here")
        return blob.read

    async def sources(self, paths: Iterable[str]) -> tuple[Path, ...]:
        """GGUF files of this machine that hold the tensors of these artifacts, each checked by its
        SHA-256 and its header. Raises Unavailable where one is not here, ModelError where one is
        not what it should be; then it is removed, if it was fetched.
        """
        return await trio.to_thread.run_sync(self._sources, tuple(paths), abandon_on_cancel=True)

    async def incoming(self, path: str) -> Incoming:
        """Where an artifact is to be put that is not here; the same for all who ask."""
        return await trio.to_thread.run_sync(self._receive, path)

    def forget_pieces(self) -> None:
        """Checks whole artifacts from now on: the list of pieces, which the manifest does not vouch
        for, is wrong.
        """
        with self._lock:
            self.pieces, self.pieces_bytes = None, b""
            self.ref = replace(self.ref, pieces="")
            self._incoming.clear()

    async def adopt(self, path: str, file: Path) -> None:
        """Takes a file that was got elsewhere as an artifact, without a copy of it. Raises
        ModelError where it is not what it should be.
        """
        await trio.to_thread.run_sync(self._adopt, path, file, abandon_on_cancel=True)

    def _file(self, artifact: Artifact) -> Path | None:
        for folder in (self.home, self.folder):
            if folder is not None and _is_of(folder / artifact.path, artifact.artifact_bytes):
                return folder / artifact.path
        return None

    def _sources(self, paths: tuple[str, ...]) -> tuple[Path, ...]:
        found: dict[Path, None] = {}
        for path in paths:
            if path in self._virtual:
                for file in self._virtual[path].files:
                    file.check()
                    found[file.path] = None
            else:
                found[self._checked(self.manifest.artifact(path))] = None
        return tuple(found)

    def _checked(self, artifact: Artifact) -> Path:
        file = self._file(artifact)
        if file is None:
            raise Unavailable(f"{artifact.path} of {self.manifest.model_id} is not here")
        try:
            self._check(artifact, file)
        except ModelError as error:
            raise ModelError(f"{file} is not usable: {error}") from error
        return file

    def _check(self, artifact: Artifact, file: Path) -> None:
        try:
            if self._digester(file) == artifact.sha256:
                check_artifact(self.manifest, artifact.path, read_file(file).header)
                return
            if file.is_relative_to(self.folder):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"it cannot be read: {error.strerror}") from error
        raise ModelError("its SHA-256 is not that of the manifest")

    def _receive(self, path: str) -> Incoming:
        artifact = self.manifest.artifact(path)
        with self._lock:
            incoming = self._incoming.get(path)
            if incoming is None or incoming.is_finished:
                hashes = self.pieces.hashes[path] if self.pieces else None
                incoming = Incoming(artifact, hashes, self.folder / path)
                self._incoming[path] = incoming
            return incoming

    def _adopt(self, path: str, file: Path) -> None:
        artifact, real = self.manifest.artifact(path), file.resolve()
        try:
            if self._digester(real) != artifact.sha256:
                raise ModelError(f"{file} is not {path} of the manifest: its SHA-256 differs")
            folders.link(self.folder / path, real)
        except OSError as error:
            raise ModelError(f"{file} cannot be used: {error.strerror}") from error


def _is_of(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False
