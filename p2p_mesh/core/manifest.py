"""The two files that describe a package: its manifest, and the hashes of its pieces.

Both may come from strangers: what can be read here has safe paths, sizes and counts within bounds,
no file twice, and all of its layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import (
    MANIFEST,
    MAX_LAYERS,
    MAX_MANIFEST,
    MAX_PIECES,
    MAX_PROJECTORS,
    PIECE,
    PIECES,
    Artifact,
    ArtifactPath,
    Manifest,
    Pieces,
    Sha256,
    SourceModel,
    piece_count,
)
from p2p_mesh.core.records import Count, Record, ShortText
from p2p_mesh.errors import ModelError

MAX_DEPTH = 16
"""Folders within folders."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_HEX = re.compile(r"[0-9a-fA-F]{64}\Z")


class _Entry(Record, frozen=True, kw_only=True):
    path: ArtifactPath
    tensor_count: Count
    tensor_bytes: Count
    artifact_bytes: Annotated[int, Meta(ge=1, le=2**53)]
    sha256: Annotated[str, Meta(max_length=64)]


class _Layer(_Entry, frozen=True, kw_only=True):
    layer_index: Count


class _Projector(_Entry, frozen=True, kw_only=True):
    kind: ShortText


class _Shared(Record, frozen=True, kw_only=True):
    metadata: _Entry
    embeddings: _Entry
    output: _Entry


class _File(Record, frozen=True, kw_only=True, omit_defaults=False):
    schema_version: int
    model_id: Annotated[str, Meta(min_length=1, max_length=256)]
    source_model: SourceModel
    format: str
    layer_count: Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
    shared: _Shared
    layers: Annotated[tuple[_Layer, ...], Meta(max_length=MAX_LAYERS)]
    activation_width: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    projectors: Annotated[tuple[_Projector, ...], Meta(max_length=MAX_PROJECTORS)] = ()
    generation: dict[str, Any] | None = None
    skippy_abi_version: ShortText = ""
    created_at_unix_secs: Count = 0


class _PiecesOf(Record, frozen=True, kw_only=True):
    path: ArtifactPath
    sha256: tuple[Sha256, ...]


class _PiecesFile(Record, frozen=True, kw_only=True, omit_defaults=False):
    schema_version: int
    manifest_sha256: Sha256
    piece_bytes: int
    artifacts: Annotated[tuple[_PiecesOf, ...], Meta(max_length=MAX_LAYERS + MAX_PROJECTORS + 3)]


class _Version(Record, frozen=True, kw_only=True):
    schema_version: int | None = None
    format: str | None = None


def read_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes of its file. Raises ModelError, in words, for a bad one."""
    if len(data) > MAX_MANIFEST:
        raise ModelError(f"its {MANIFEST} has {len(data)} bytes; {MAX_MANIFEST} is the limit")
    version = _decode(data, _Version)
    if version.schema_version != 1:
        raise ModelError(f"its schema_version is {version.schema_version}; 1 can be read")
    if version.format != "layer-package":
        raise ModelError(f"its format is {version.format!r}, and not 'layer-package'")
    file = _decode(data, _File)
    manifest = _manifest(file)
    _check_paths(manifest.artifacts)
    return manifest


def write_manifest(manifest: Manifest) -> bytes:
    """The same bytes for the same manifest."""
    shared = _Shared(
        metadata=_entry(_Entry, manifest.metadata),
        embeddings=_entry(_Entry, manifest.embeddings),
        output=_entry(_Entry, manifest.output),
    )
    layers = tuple(
        _entry(_Layer, one, layer_index=number) for number, one in enumerate(manifest.layers)
    )
    file = _File(
        schema_version=1,
        model_id=manifest.model_id,
        source_model=manifest.source,
        format="layer-package",
        layer_count=manifest.layer_count,
        activation_width=manifest.activation_width,
        shared=shared,
        layers=layers,
        projectors=tuple(_entry(_Projector, one, kind="mmproj") for one in manifest.projectors),
        generation=manifest.generation,
        skippy_abi_version=manifest.abi,
        created_at_unix_secs=manifest.created,
    )
    absent = {name for name in ("generation", "projectors") if not getattr(file, name)}
    fields = {key: value for key, value in msgspec.to_builtins(file).items() if key not in absent}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def _entry(form: type[Any], artifact: Artifact, **more: Any) -> Any:
    return form(**msgspec.structs.asdict(artifact), **more)


def _decode(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"it cannot be read: {str(error)[:200] or 'too deep'}") from None


def _manifest(file: _File) -> Manifest:
    _check_layers(file)
    kinds = {one.kind for one in file.projectors} - {"mmproj"}
    if kinds:
        raise ModelError(f"it has a projector of the unknown kind {min(kinds)!r}")
    layers = sorted(file.layers, key=lambda one: one.layer_index)
    return Manifest(
        model_id=file.model_id,
        layer_count=file.layer_count,
        activation_width=file.activation_width or 0,
        metadata=_artifact(file.shared.metadata),
        embeddings=_artifact(file.shared.embeddings),
        output=_artifact(file.shared.output),
        layers=tuple(map(_artifact, layers)),
        projectors=tuple(map(_artifact, file.projectors)),
        source=file.source_model,
        generation=file.generation,
        abi=file.skippy_abi_version,
        created=file.created_at_unix_secs,
    )


def _check_layers(file: _File) -> None:
    found = Counter(one.layer_index for one in file.layers)
    wanted = set(range(file.layer_count))
    if twice := [number for number, count in found.items() if count > 1]:
        raise ModelError(f"it names layer {min(twice)} twice")
    if missing := wanted - found.keys():
        raise ModelError(f"it has {file.layer_count} layers and does not name layer {min(missing)}")
    if beyond := found.keys() - wanted:
        raise ModelError(f"it has {file.layer_count} layers and names layer {min(beyond)}")


def _artifact(entry: _Entry) -> Artifact:
    if not _HEX.match(entry.sha256):
        raise ModelError(f"the SHA-256 of {entry.path!r} is {entry.sha256!r}")
    if bool(entry.tensor_count) != bool(entry.tensor_bytes):
        raise ModelError(
            f"{entry.path!r} has {entry.tensor_count} tensors of {entry.tensor_bytes} bytes"
        )
    if entry.tensor_bytes > entry.artifact_bytes:
        raise ModelError(
            f"{entry.path!r} has {entry.artifact_bytes} bytes, and {entry.tensor_bytes} in tensors"
        )
    return Artifact(
        path=entry.path,
        tensor_count=entry.tensor_count,
        tensor_bytes=entry.tensor_bytes,
        artifact_bytes=entry.artifact_bytes,
        sha256=Digest(entry.sha256.lower()),
    )


def _check_paths(artifacts: Iterable[Artifact]) -> None:
    seen: set[str] = set()
    for one in artifacts:
        if not is_safe(one.path):
            raise ModelError(f"it names a file at {one.path!r}, which is no safe relative path")
        folded = one.path.casefold()  # one file, where the disk does not tell cases apart
        if folded in seen:
            raise ModelError(f"it names {one.path!r} twice")
        seen.add(folded)


def is_safe(path: str) -> bool:
    """Whether a path of a manifest stays inside the package, on any system, and hides nothing."""
    parts = path.split("/")
    return (
        len(parts) <= MAX_DEPTH
        and all(part and not part.startswith(".") and part == part.strip() for part in parts)
        and not _UNSAFE.search(path)
        and path.casefold() not in (MANIFEST, PIECES)
    )


def read_pieces(data: bytes, manifest: Manifest, digest: str) -> Pieces:
    """The hashes of the pieces of a package whose manifest has that SHA-256. Raises ModelError."""
    if len(data) > MAX_PIECES:
        raise ModelError(f"its {PIECES} has {len(data)} bytes; {MAX_PIECES} is the limit")
    file = _decode(data, _PiecesFile)
    if file.schema_version != 1 or file.piece_bytes != PIECE:
        raise ModelError(
            f"its {PIECES} has version {file.schema_version} and pieces of {file.piece_bytes} "
            f"bytes; 1 and {PIECE} can be read"
        )
    if file.manifest_sha256 != digest:
        raise ModelError(f"its {PIECES} belongs to another manifest, {file.manifest_sha256}")
    hashes = {one.path: tuple(one.sha256) for one in file.artifacts}
    wanted = {one.path: piece_count(one.artifact_bytes) for one in manifest.artifacts}
    if len(hashes) < len(file.artifacts) or wanted != {
        path: len(found) for path, found in hashes.items()
    }:
        raise ModelError(f"its {PIECES} does not have each piece of each artifact once")
    return Pieces(Digest(digest), hashes)


def write_pieces(pieces: Pieces) -> bytes:
    """The same bytes for the same pieces."""
    file = _PiecesFile(
        schema_version=1,
        manifest_sha256=pieces.manifest,
        piece_bytes=PIECE,
        artifacts=tuple(
            _PiecesOf(path=path, sha256=tuple(map(Digest, found)))
            for path, found in pieces.hashes.items()
        ),
    )
    return msgspec.json.encode(file) + b"\n"
