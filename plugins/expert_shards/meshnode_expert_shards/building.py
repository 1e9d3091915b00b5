"""From the package of a model to the file of an expert shard.

Of each artifact the header is fetched, then just those ranges that the shard takes: no node needs
the whole. The file is kept in the cache beside the stages that are composed of the package, named
after its experts, and used again; those that no node uses any longer are removed. The routers of
the whole model are a file like these.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import trio

from meshnode_expert_shards.composing import Composed, Source, compose, size_of
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.routers import router_recipe
from p2p_mesh.core.experts.shard import ShardRecipe, obstacle
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import Manifest, check_artifact, check_whole
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Package
from p2p_mesh.settings import cache_dir

HEADER = 64 << 10
"""Bytes of an artifact in which its header is looked for at first,"""
MOST_HEADER = 64 << 20
"""and at last."""
STUDIED, FETCHED = 0.1, 0.6
"""The shares at which the headers are here, and then what the shard takes."""
ROUTERS = "routers"
"""The name of the file that has those of the whole model."""

Progress = Callable[[float], None]
Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Whole:
    """A model of which a shard is to be made."""

    package: Package
    digest: Digest
    """By which all nodes know it: that of its (first) file, else of its manifest."""
    header: Header
    """All of its keys and tensors; the offsets are those of its parts."""
    layout: Layout
    headers: Mapping[str, Header]
    """Of its artifacts."""

    @property
    def digests(self) -> frozenset[str]:
        """Under which a node may hold it."""
        return frozenset({self.digest, self.package.ref.manifest})

    @property
    def trunk_bytes(self) -> int:
        """All weights but those of routed experts."""
        return sum(one.size for one in self.header.tensors) - self.layout.expert_bytes


@dataclass(frozen=True, slots=True)
class Built:
    """The file of a shard."""

    path: Path
    size_bytes: int
    sha256: Digest


class _Note(msgspec.Struct, frozen=True):
    """What is written beside it."""

    size_bytes: int
    sha256: str


def digest_of(package: Package) -> Digest:
    claimed = package.manifest.source.sha256
    is_digest = len(claimed) == 64 and not claimed.strip("0123456789abcdef")
    return Digest(claimed) if is_digest else package.ref.manifest


async def study(package: Package, progress: Progress = lambda _: None) -> Whole:
    """Raises ModelError for a model of which no shards are made, and what fetching raises."""
    manifest = package.manifest
    headers = await _headers(package, lambda share: progress(STUDIED * share))
    return await trio.to_thread.run_sync(_studied, package, manifest, headers)


def _studied(package: Package, manifest: Manifest, headers: Mapping[str, Header]) -> Whole:
    check_whole(manifest, headers)
    first = headers[manifest.metadata.path]
    tensors = {one.name: one for header in headers.values() for one in header.tensors}
    header = Header(first.metadata, tuple(tensors.values()), first.entries)
    why = obstacle(header)
    found = layout(header) if not why else None
    if found is None:
        raise ModelError(f"{manifest.model_id} is not run in expert shards: {why}")
    return Whole(package, digest_of(package), header, found, headers)


async def _headers(package: Package, progress: Progress) -> dict[str, Header]:
    beside = {one.path for one in package.manifest.projectors}
    sizes = {one.path: one.artifact_bytes for one in package.manifest.artifacts
             if one.path not in beside}  # fmt: skip
    found: dict[str, Header] = {}
    most = HEADER
    while left := {path: min(size, most) for path, size in sizes.items() if path not in found}:
        wanted = {path: [(0, end)] for path, end in left.items()}
        reads = await package.fetch_ranges(wanted, progress)
        found |= await trio.to_thread.run_sync(_read, package.manifest, reads, left, most)
        most *= 8
    return {path: found[path] for path in sizes}


def _read(
    manifest: Manifest, reads: Mapping[str, Read], ends: Mapping[str, int], most: int
) -> dict[str, Header]:
    """Those headers that end within what is here. Raises ModelError for one that never does."""
    found = {}
    for path, end in ends.items():
        size = manifest.artifact(path).artifact_bytes
        try:
            header = read_header(reads[path](0, end), size)
        except ModelError as error:
            if end == size or most >= MOST_HEADER:
                raise ModelError(f"{path} of {manifest.model_id}: {error}") from error
            continue
        check_artifact(manifest, path, header)
        found[path] = header
    return found


# The file


def place(whole: Whole, name: str) -> Path:
    return cache_dir() / "stages" / whole.package.ref.manifest / f"shard-{name}.gguf"


async def build(whole: Whole, recipe: ShardRecipe, name: str, progress: Progress) -> Built:
    """The file of a shard under that name, which may be here already. Raises ModelError where it
    cannot be written, and what fetching raises.
    """
    target = place(whole, name)
    if (built := await trio.to_thread.run_sync(_known, target)) is not None:
        return built
    manifest = whole.package.manifest
    wanted = {path: recipe.ranges(header) for path, header in whole.headers.items()}
    keys = manifest.metadata
    reads = await whole.package.fetch_ranges(
        {**wanted, keys.path: [(0, keys.artifact_bytes)]}, partial(between, progress, 0.0, FETCHED)
    )
    sources = {path: Source(header, reads[path]) for path, header in whole.headers.items()}
    writing = _Writing(recipe, sources[keys.path], tuple(sources.values()), target)
    size = await trio.to_thread.run_sync(writing.size)
    async with whole.package.room(size):
        return await trio.to_thread.run_sync(
            writing.write, partial(between, progress, FETCHED, 1.0)
        )


async def build_routers(whole: Whole) -> Built | None:
    """The routers of the whole model; None where they are in a form that is not read. Raises as
    `build` does.
    """
    recipe = await trio.to_thread.run_sync(router_recipe, whole.header, whole.layout)
    return None if recipe is None else await build(whole, recipe, ROUTERS, lambda _: None)


def between(progress: Progress, low: float, high: float, share: float) -> None:
    """Tells a share of a part of the work as one of the whole."""
    progress(low + (high - low) * share)


@dataclass(frozen=True, slots=True)
class _Writing:
    """A shard that is written, in a thread."""

    recipe: ShardRecipe
    keys: Source
    sources: Sequence[Source]
    target: Path

    def size(self) -> int:
        return size_of(self.recipe, keys=self.keys, sources=self.sources)

    def write(self, progress: Progress) -> Built:
        def tell(share: float) -> None:
            trio.from_thread.check_cancelled()  # nobody may want it any longer
            trio.from_thread.run_sync(progress, share)

        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            found = compose(
                self.recipe, keys=self.keys, sources=self.sources, target=self.target, progress=tell
            )
            _note_of(self.target).write_bytes(
                msgspec.json.encode(_Note(found.size_bytes, found.sha256))
            )
        except OSError as error:
            raise ModelError(
                f"the expert shard cannot be written to {self.target}: {error.strerror}"
            ) from error
        return _built(found)


def _built(found: Composed) -> Built:
    return Built(found.path, found.size_bytes, Digest(found.sha256))


def _note_of(target: Path) -> Path:
    return target.with_suffix(".json")


def _known(target: Path) -> Built | None:
    """What was written before, and is as it was then. Its digest was not asked of a stranger."""
    try:
        note = msgspec.json.decode(_note_of(target).read_bytes(), type=_Note)
        if target.stat().st_size == note.size_bytes:
            return Built(target, note.size_bytes, Digest(note.sha256))
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        pass
    return None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keeps a file of the cache from being removed. Raises Unavailable where it is gone: it is
    built again then.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def clear(whole: Whole) -> None:
    """Removes the shards of a model that no engine uses. Blocks."""
    for path in place(whole, "x").parent.glob("shard-*.gguf"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            _note_of(path).unlink(missing_ok=True)
