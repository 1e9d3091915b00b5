"""Whether a package in a folder is what its manifest says: paths, sizes, hashes, and each tensor in
one artifact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.manifest import read_manifest, read_pieces
from p2p_mesh.core.package import PIECES, Manifest, check_artifact, check_whole
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.blob import Blob, Hashed, Job, look_at, whole
from p2p_mesh.serve.package.source import read_file


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a package, or the whole (`path` empty), and what is wrong with it."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    digest: str
    """The SHA-256 of the manifest."""
    manifest: Manifest
    problems: tuple[Problem, ...]
    has_pieces: bool
    """It has a list of the hashes of its pieces."""


def verify(folder: Path, job: Job) -> Report:
    """Reads everything. Raises ModelError where there is no manifest, or a bad one."""
    data = folders.read_manifest_of(folder)
    try:
        manifest = read_manifest(data)
    except ModelError as error:
        raise ModelError(f"{folder} cannot be used: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    blobs, problems = _blobs(folder, manifest)
    hashes = job.hash(blobs)
    problems += _hash_problems(manifest, hashes)
    problems += _header_problems(folder, manifest, blobs)
    problems += _piece_problems(folder, manifest, digest, hashes)
    return Report(digest, manifest, tuple(problems), (folder / PIECES).exists())


def _blobs(folder: Path, manifest: Manifest) -> tuple[dict[str, Blob], list[Problem]]:
    found, problems = {}, []
    for one in manifest.artifacts:
        try:
            blob = whole(look_at(folder / one.path))
        except OSError as error:
            problems.append(Problem(one.path, f"it cannot be read: {error.strerror}"))
            continue
        if blob.size == one.artifact_bytes:
            found[one.path] = blob
        else:
            reason = f"it has {blob.size} bytes; the manifest says {one.artifact_bytes}"
            problems.append(Problem(one.path, reason))
    return found, problems


def _hash_problems(manifest: Manifest, hashes: Mapping[str, Hashed]) -> Iterator[Problem]:
    for path, found in hashes.items():
        if found.sha256 != manifest.artifact(path).sha256:
            yield Problem(path, "its SHA-256 is not that of the manifest")


def _header_problems(
    folder: Path, manifest: Manifest, blobs: Mapping[str, Blob]
) -> Iterator[Problem]:
    headers: dict[str, Header] = {}
    for path in blobs:
        try:
            headers[path] = read_file(folder / path).header
            check_artifact(manifest, path, headers[path])
        except ModelError as error:
            yield Problem(path, str(error))
    if len(headers) == len(manifest.artifacts):
        try:
            check_whole(manifest, headers)
        except ModelError as error:
            yield Problem("", str(error))


def _piece_problems(
    folder: Path, manifest: Manifest, digest: str, hashes: Mapping[str, Hashed]
) -> Iterator[Problem]:
    if not (folder / PIECES).exists():
        return
    try:
        pieces = read_pieces(folders.read_pieces_of(folder), manifest, digest)
    except ModelError as error:
        yield Problem(PIECES, str(error))
        return
    for path, found in hashes.items():
        if found.pieces != pieces.hashes[path]:
            yield Problem(PIECES, f"its hashes of {path} are not those of the file")
