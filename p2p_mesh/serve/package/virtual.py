"""A plain GGUF file as a package, of which there is no copy: each artifact is a header that is made
here, ranges of the file, and padding between them.

The same file gives the same package, byte for byte, on every node, whatever its name, and whether
the artifacts are written out (build.py) or not.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2p_mesh.core.gguf import Header, Tensor
from p2p_mesh.core.manifest import is_safe, write_manifest, write_pieces
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import (
    EMBEDDINGS,
    MAX_LAYERS,
    METADATA,
    OUTPUT,
    Artifact,
    Home,
    Manifest,
    Pieces,
    SourceModel,
    home,
    layer_path,
)
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Blob, File, Hashed, Segment, whole
from p2p_mesh.serve.package.source import Source, check_source, read_file

ALIGNMENT = 32
"""Of tensors in a file that does not say."""
MAX_ALIGNMENT = 1 << 16

_SHARED: Mapping[Home, str] = {"metadata": METADATA, "embeddings": EMBEDDINGS, "output": OUTPUT}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the artifacts of a model are made of, by their paths, in the manifest's order."""

    model_id: str
    layer_count: int
    activation_width: int
    tensors: Mapping[str, tuple[int, int]]
    """Of each artifact: how many, and their bytes."""
    blobs: Mapping[str, Blob]
    projectors: tuple[str, ...] = ()


def lay_out(source: Source, projectors: Sequence[Path] = ()) -> Layout:
    """Raises ModelError for a file that makes no package, OSError."""
    check_source(source)
    header = source.header
    layers = _layer_count(header)
    homes: dict[str, list[tuple[File, Tensor]]] = {path: [] for path in _paths(layers)}
    for file, tensor in source.tensors:
        homes[_path(home(tensor.name))].append((file, tensor))
    writer = Writer(source, alignment_of(header))
    tensors = {path: (len(held), sum(one.size for _, one in held)) for path, held in homes.items()}
    blobs = {path: writer.blob(held, with_keys=path == METADATA) for path, held in homes.items()}
    beside = _projectors(projectors)
    return Layout(
        model_id=_model_id(header),
        layer_count=layers,
        activation_width=max(0, header.number("embedding_length")),
        tensors=tensors | {path: counts for path, (_, counts) in beside.items()},
        blobs=blobs | {path: blob for path, (blob, _) in beside.items()},
        projectors=tuple(beside),
    )


def describe(layout: Layout, found: Mapping[str, Hashed], source: SourceModel) -> Manifest:
    """The manifest of a package whose artifacts have these hashes."""
    artifacts = {
        path: Artifact(
            path=path,
            tensor_count=layout.tensors[path][0],
            tensor_bytes=layout.tensors[path][1],
            artifact_bytes=blob.size,
            sha256=Digest(found[path].sha256),
        )
        for path, blob in layout.blobs.items()
    }
    return Manifest(
        model_id=layout.model_id,
        layer_count=layout.layer_count,
        activation_width=layout.activation_width,
        metadata=artifacts[METADATA],
        embeddings=artifacts[EMBEDDINGS],
        output=artifacts[OUTPUT],
        layers=tuple(artifacts[layer_path(number)] for number in range(layout.layer_count)),
        projectors=tuple(artifacts[path] for path in layout.projectors),
        source=source,
    )


def write(layout: Layout, found: Mapping[str, Hashed], source: SourceModel) -> tuple[bytes, bytes]:
    """The bytes of the manifest, and of the list of its pieces."""
    manifest = write_manifest(describe(layout, found, source))
    digest = Digest(hashlib.sha256(manifest).hexdigest())
    hashes = {path: found[path].pieces for path in layout.blobs}
    return manifest, write_pieces(Pieces(digest, hashes))


def _layer_count(header: Header) -> int:
    numbers = [one for one in (home(tensor.name) for tensor in header.tensors)
               if isinstance(one, int)]  # fmt: skip
    count = max(header.number("block_count"), max(numbers, default=-1) + 1)
    if not numbers:
        raise ModelError("it has no layers, so there is nothing to cut")
    if count > MAX_LAYERS:
        raise ModelError(f"it claims {count} layers; {MAX_LAYERS} is the limit")
    return count


def _paths(layers: int) -> Iterable[str]:
    return (*_SHARED.values(), *map(layer_path, range(layers)))


def _path(place: Home) -> str:
    return layer_path(place) if isinstance(place, int) else _SHARED[place]


def _model_id(header: Header) -> str:
    """What the model calls itself; never the file's name, which each node gives."""
    for key in ("general.name", "general.basename", "general.architecture"):
        name = header.metadata.get(key)
        if isinstance(name, str) and 0 < len(name) <= 256 and name.isprintable():
            return name
    raise ModelError("its header does not say what architecture it is")


def alignment_of(header: Header) -> int:
    found = header.metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(found, int) or found % 8 or not 8 <= found <= MAX_ALIGNMENT:
        raise ModelError(f"its header claims an alignment of {found}; {MAX_ALIGNMENT} is the limit")
    return found


def _projectors(paths: Sequence[Path]) -> dict[str, tuple[Blob, tuple[int, int]]]:
    found: dict[str, tuple[Blob, tuple[int, int]]] = {}
    for path in paths:
        name = f"projectors/{path.name}"
        if not is_safe(name) or name in found:
            raise ModelError(f"{path} cannot be named so in a package: rename it")
        part = read_file(path)
        if part.header.architecture != "clip":
            raise ModelError(f"{path} is no projector but a model ({part.header.architecture})")
        tensors = part.header.tensors
        counts = len(tensors), sum(one.size for one in tensors)
        found[name] = whole(part.file), counts
    return found


class Writer:
    """Makes GGUF files of a source's tensors, in the order in which they stand there."""

    def __init__(self, source: Source, alignment: int) -> None:
        self._alignment = alignment
        self._first = source.parts[0]

    def blob(self, held: Sequence[tuple[File, Tensor]], *, with_keys: bool) -> Blob:
        offset, infos = 0, []
        segments: list[Segment] = []
        for file, one in held:
            padding = -one.size % self._alignment
            infos.append(_info(one, offset))
            segments += Segment(one.size, file=file, offset=one.offset), Segment(padding)
            offset += one.size + padding
        keys = self._keys(with_keys=with_keys)
        head = struct.pack("<4sIQQ", b"GGUF", 3, len(held), len(keys)) + b"".join(keys + infos)
        return Blob([Segment(len(head), head), Segment(-len(head) % self._alignment), *segments])

    def _keys(self, *, with_keys: bool) -> list[bytes]:
        """Keys with their values, as they stand in the file: nothing is lost by reading them."""
        entries = self._first.header.entries
        if with_keys:
            names = [name for name in entries if not name.startswith("split.")]
        else:
            names = [one for one in ("general.architecture", "general.alignment") if one in entries]
        return [self._first.file.read(entries[name][0], entries[name][1] - entries[name][0])
                for name in names]  # fmt: skip


def _info(tensor: Tensor, offset: int) -> bytes:
    name = tensor.name.encode()
    form = f"<Q{len(name)}sI{len(tensor.shape)}QIQ"
    shape = tensor.shape
    return struct.pack(form, len(name), name, len(shape), *shape, tensor.type, offset)
