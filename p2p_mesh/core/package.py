"""The layer-package format: a model as one file for each layer, named by a manifest
(github.com/Mesh-LLM, `model-package.json`, schema 1), and beside it a hash of each piece.

`manifest.py` reads and writes both files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta

from p2p_mesh.core.families.recipe import Recipe
from p2p_mesh.core.gguf import Header, Tensor
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Count, Record, ShortText
from p2p_mesh.errors import ModelError

MANIFEST = "model-package.json"
PIECES = "model-package.pieces.json"
METADATA = "shared/metadata.gguf"
EMBEDDINGS = "shared/embeddings.gguf"
OUTPUT = "shared/output.gguf"

PIECE = 4 << 20
"""Bytes of an artifact that have a hash of their own."""

MAX_MANIFEST = 16 << 20
MAX_PIECES = 64 << 20
"""Bytes of the two files."""
MAX_LAYERS = 4096
MAX_PROJECTORS = 16

WRITTEN_FOR = "0.1.0"
"""The first version of the format's own runtime: its fragments are GGUF files, as these are."""

Sha256 = Annotated[Digest, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
ArtifactPath = Annotated[str, Meta(min_length=1, max_length=256)]
Home = Literal["metadata", "embeddings", "output"] | int
"""The artifact that a tensor belongs to; a number: that of its layer."""

_EMBEDDINGS = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})
_OUTPUT = frozenset({"output.weight", "output.bias", "output_norm.weight", "output_norm.bias"})
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,5})\.")


class PackageRef(Record, frozen=True, kw_only=True):
    """Which package is meant, for ever: by the SHA-256 of its manifest, and of the list of the
    hashes of its pieces.
    """

    manifest: Sha256
    pieces: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    """Empty: it was published without the list, and is checked by whole artifacts."""
    hub: ShortText = ""
    """Where it is published, `hf://ns/repo@rev`; empty: nowhere."""


class Artifact(Record, frozen=True, kw_only=True):
    """A file of a package."""

    path: ArtifactPath
    tensor_count: Count
    tensor_bytes: Count
    artifact_bytes: Count
    sha256: Sha256


class SourceFile(Record, frozen=True, kw_only=True):
    """A file that a package was made of."""

    path: str
    size_bytes: Count
    sha256: str | None = None


class SourceModel(Record, frozen=True, kw_only=True):
    """What a package was made of."""

    path: str
    sha256: str
    repo: str | None = None
    revision: str | None = None
    primary_file: str | None = None
    canonical_ref: str | None = None
    distribution_id: str | None = None
    files: tuple[SourceFile, ...] = ()


class Manifest(Record, frozen=True, kw_only=True):
    """What a package holds."""

    model_id: ShortText
    layer_count: Count
    activation_width: Count
    """0: an old package does not say."""
    metadata: Artifact
    embeddings: Artifact
    output: Artifact
    layers: tuple[Artifact, ...]
    """By number: the first is layer 0."""
    projectors: tuple[Artifact, ...] = ()
    source: SourceModel = SourceModel(path="", sha256="")
    generation: dict[str, Any] | None = None
    """How its publisher would have it run; nothing here goes by it."""
    abi: str = WRITTEN_FOR
    created: Count = 0
    """Unix seconds; 0: not said, so that one model gives one package whenever it is made."""

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        return (self.metadata, self.embeddings, self.output, *self.layers, *self.projectors)

    @property
    def total_bytes(self) -> int:
        """Of what a whole model takes on the disk, without projectors."""
        return sum(one.artifact_bytes for one in self.artifacts[: 3 + len(self.layers)])

    @property
    def has_head(self) -> bool:
        """It surely has a matrix that makes logits; else its embedding table may be it. A matrix of
        the table's shape is no 25 times smaller, in any type, and norms are far smaller.
        """
        return self.output.tensor_bytes * 25 >= self.embeddings.tensor_bytes

    def artifact(self, path: str) -> Artifact:
        for one in self.artifacts:
            if one.path == path:
                return one
        raise ModelError(f"the package has no artifact {path[:256]!r}")


@dataclass(frozen=True, slots=True)
class Pieces:
    """The SHA-256 of each 4 MiB of each artifact."""

    manifest: Digest
    hashes: Mapping[str, tuple[str, ...]]


def piece_count(size: int) -> int:
    """Pieces of an artifact of so many bytes."""
    return -(-size // PIECE)


def piece_range(size: int, number: int) -> tuple[int, int]:
    """Where a piece begins, and how long it is."""
    offset = number * PIECE
    return offset, min(PIECE, size - offset)


def pieces_of(size: int, ranges: Iterable[tuple[int, int]]) -> frozenset[int]:
    """The numbers of the pieces of an artifact of so many bytes that have a part of these ranges,
    each an offset and a length. Raises ModelError for a range that it has not.
    """
    found: set[int] = set()
    for offset, length in ranges:
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(f"it has {size} bytes, and not {length} from {offset}")
        found.update(range(offset // PIECE, -(-(offset + length) // PIECE) if length else 0))
    return frozenset(found)


def home(tensor: str) -> Home:
    """The artifact that a tensor belongs to, by its name."""
    if match := _LAYER.match(tensor):
        return int(match[1])
    if tensor in _EMBEDDINGS:
        return "embeddings"
    return "output" if tensor in _OUTPUT else "metadata"


def layer_path(number: int) -> str:
    """Where a package that is made here has a layer."""
    return f"layers/layer-{number:05}.gguf"


def artifacts_for(manifest: Manifest, recipe: Recipe) -> tuple[str, ...]:
    """The artifacts that hold all that a stage's file is made of; the metadata come first."""
    if recipe.total > manifest.layer_count:
        raise ModelError(
            f"the model has {recipe.total} layers by its metadata, "
            f"and {manifest.layer_count} by its manifest"
        )
    homes = {"metadata", *recipe.blocks, *map(home, recipe.shared)}
    homes |= {home(one.source) for one in recipe.renamed}
    if "*" in recipe.shared:
        homes.add("output")
        if recipe.is_first or recipe.needs_tokens or not manifest.has_head:
            homes.add("embeddings")
    return tuple(path for path, own in _homes(manifest).items() if own in homes)


def check_ranges(tensors: Collection[Tensor]) -> None:
    """Raises ModelError where two tensors of a file share a name, or bytes."""
    names: set[str] = set()
    for one in tensors:
        if one.name in names:
            raise ModelError(f"it has the tensor {one.name!r} twice")
        names.add(one.name)
        if not one.size:
            raise ModelError(
                f"its tensor {one.name!r} has no bytes, or the type {one.type}, "
                f"which this version does not know"
            )
    placed = sorted(tensors, key=lambda one: one.offset)
    for before, after in pairwise(placed):
        if before.offset + before.size > after.offset:
            raise ModelError(f"its tensors {before.name!r} and {after.name!r} overlap")


def check_artifact(manifest: Manifest, path: str, header: Header) -> None:
    """Raises ModelError where the header of an artifact is not what the manifest says."""
    artifact = manifest.artifact(path)
    check_ranges(header.tensors)
    found = len(header.tensors), sum(one.size for one in header.tensors)
    if found != (artifact.tensor_count, artifact.tensor_bytes):
        raise ModelError(
            f"it has {found[0]} tensors of {found[1]} bytes; the manifest says "
            f"{artifact.tensor_count} of {artifact.tensor_bytes}"
        )
    own = _homes(manifest).get(path)
    for one in header.tensors if own is not None else ():
        # What belongs to no layer may be repeated: the format's first writer does so.
        if home(one.name) not in (own, "metadata"):
            raise ModelError(f"it has the tensor {one.name!r}, which belongs elsewhere")


def _homes(manifest: Manifest) -> dict[str, Home]:
    shared: dict[str, Home] = {
        manifest.metadata.path: "metadata",
        manifest.embeddings.path: "embeddings",
        manifest.output.path: "output",
    }
    return shared | {one.path: number for number, one in enumerate(manifest.layers)}


def check_whole(manifest: Manifest, headers: Mapping[str, Header]) -> None:
    """Raises ModelError where artifacts do not make up one model: other architectures, a tensor in
    two of them. Those of no layer may be repeated, alike, if the metadata have them too.
    """
    architecture = headers[manifest.metadata.path].architecture
    seen: dict[str, tuple[str, Tensor]] = {}
    for path in _homes(manifest):
        header = headers[path]
        if header.architecture not in ("", architecture):
            raise ModelError(
                f"{path} is of a {header.architecture[:64]!r}, and the package of a "
                f"{architecture[:64]!r}"
            )
        for one in header.tensors:
            first, known = seen.setdefault(one.name, (path, one))
            if first != path and not (first == manifest.metadata.path and _alike(known, one)):
                raise ModelError(f"the tensor {one.name!r} is in {first} and in {path}")


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.type, one.size) == (other.shape, other.type, other.size)
