"""A package as it lies in a folder: what is in it, and whether it may be used."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.manifest import read_manifest
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import MANIFEST, MAX_MANIFEST, MAX_PIECES, PIECES, Manifest
from p2p_mesh.core.reference import read_hub
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.source import read_file

INDEX = "files.json"
"""In the cache: the manifests of GGUF files, by how these looked."""
ORIGIN = ".origin.json"
"""In a folder of the cache: where the package is from. No artifact can be named so."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    hub: str = ""
    """`hf://ns/repo@commit`, where it is published."""
    file: str = ""
    """The GGUF file of which it is a view,"""
    stamps: tuple[str, ...] = ()
    """and how that and those that belong to it looked."""


@dataclass(frozen=True, slots=True)
class Described:
    """What a package says of itself."""

    name: str
    manifest: Manifest
    header: Header
    digest: Digest


def is_package(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_text(path: Path, most: int) -> bytes:
    """Raises ModelError, with the path."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise ModelError(f"{path} has more than {most} bytes")
    return data


def read_manifest_of(folder: Path) -> bytes:
    """Raises ModelError."""
    return read_text(folder / MANIFEST, MAX_MANIFEST)


def read_pieces_of(folder: Path) -> bytes:
    """Empty where the package was published without. Raises ModelError."""
    path = folder / PIECES
    return read_text(path, MAX_PIECES) if path.exists() else b""


def read_origin(folder: Path) -> Origin:
    """Nowhere, where the folder does not say, or what it says is damaged."""
    try:
        return msgspec.json.decode((folder / ORIGIN).read_bytes(), type=Origin)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Origin()


def describe(folder: Path) -> Described:
    """The package in a folder, by its manifest and its metadata, whose hash is checked. Raises
    ModelError.
    """
    data = read_manifest_of(folder)
    manifest = read_manifest(data)
    path = folder / manifest.metadata.path
    try:
        part = read_file(path)
        found = sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    if found != manifest.metadata.sha256:
        raise ModelError(f"{path} is not what the manifest says: its SHA-256 differs")
    return Described(name(folder), manifest, part.header, digest(data))


def digest(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name(folder: Path) -> str:
    """What a model is called whose package this is: as its repository, or its folder."""
    hub = read_origin(folder).hub
    return read_hub(hub).repo.partition("/")[2] if hub else folder.name


def keep(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes small files. What is there already, and the same, stays. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, data in files.items():
        path = folder / place
        if data and not (path.is_file() and path.read_bytes() == data):
            write_aside(path, data)


def write_aside(path: Path, data: bytes) -> None:
    """Writes a file that others see whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def link(path: Path, target: Path) -> None:
    """Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
