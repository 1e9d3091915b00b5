"""A mixture of experts on this machine, as the commands see it: a GGUF file, one in several files,
or a package of which all files are here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import trio

from meshnode_expert_shards.composing import Source
from meshnode_expert_shards.rankings import kept
from p2p_mesh.cli import output
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.ranking import Ranking, check_ranking
from p2p_mesh.core.gguf import Header
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import check_artifact, check_whole
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.reference import is_hub
from p2p_mesh.errors import LocalError, ModelError
from p2p_mesh.serve import store
from p2p_mesh.serve.package import folder
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.package.source import Part, check_source, read_file, read_source
from p2p_mesh.serve.package.whole import whole
from p2p_mesh.settings import cache_dir

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Mixture:
    """A model with experts. `opened` makes it."""

    model: ModelFile
    layout: Layout
    header: Header
    """All of its keys and tensors."""
    parts: tuple[Part, ...]
    """Its files; the first has its keys."""
    claimed: str = ""
    """Of a package: the digest of the file of which it was made, where it says so."""

    @property
    def path(self) -> Path:
        return Path(self.model.path)

    @property
    def sources(self) -> tuple[Source, ...]:
        return tuple(Source(one.header, one.file.read) for one in self.parts)

    @cached_property
    def digest(self) -> Digest:
        """Of the whole model, as all nodes name it: of its first file. Seconds for gigabytes, once:
        it is remembered.
        """
        if self.path.is_dir():
            return Digest(self.claimed) if self.claimed else Digest(self.model.digest or "")
        with output.progress() as show:
            show(f"Reading {self.path}, for its digest")
            return digests().file(self.path)

    def known(self) -> Ranking | None:
        """What was measured of it, if anything was. Raises ModelError where it does not fit."""
        found = kept(self.digest)
        if found is None:
            return None
        check_ranking(found.ranking, self.layout)
        return found.ranking

    def ranking(self) -> Ranking:
        """The same; raises LocalError where nothing was measured."""
        if (found := self.known()) is None:
            raise LocalError(
                f"nothing is known of which experts {self.model.id} uses: run `meshnode experts "
                f"analyze {self.model.path}` first"
            )
        return found

    def file(self, progress: Callable[[float], None]) -> Path:
        """One file (or the first of several) that llama.cpp loads. A package is put together in
        the cache.
        """
        return trio.run(self._whole, progress) if self.path.is_dir() else self.path

    async def _whole(self, progress: Callable[[float], None]) -> Path:
        package = await Packages(digests().packages, digests()).opened(self.path)
        return await whole(package, progress)


def digests() -> store.Digests:
    return store.Digests(cache_dir() / "digests.json")


def opened(reference: str) -> Mixture:
    """The model that a reference means. Raises ModelError for what is no mixture of experts, or
    has not all of them.
    """
    if is_hub(reference):
        raise ModelError(
            f"{reference} is on a hub, and its files are wanted here: `hf download` fetches them"
        )
    path = store.find(reference)
    model = store.read(path)
    if model.shard is not None:
        raise ModelError(f"{path} is an expert shard, which lacks experts: name the whole model")
    try:
        parts, claimed = _package(path) if path.is_dir() else (_file(path), "")
        header = _joined(parts)
        found = layout(header)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ModelError as error:
        raise ModelError(f"{path} cannot be used: {error}") from error
    if found is None:
        raise ModelError(f"{path} is no mixture of experts: every token needs all of it")
    return Mixture(model, found, header, parts, claimed)


def _file(path: Path) -> tuple[Part, ...]:
    source = read_source(path)
    check_source(source)
    return source.parts


def _package(path: Path) -> tuple[tuple[Part, ...], str]:
    manifest = folder.describe(path).manifest
    beside = {one.path for one in manifest.projectors}
    names = [one.path for one in manifest.artifacts if one.path not in beside]
    parts = {name: _artifact(path, name) for name in names}
    for name, part in parts.items():
        check_artifact(manifest, name, part.header)
    check_whole(manifest, {name: part.header for name, part in parts.items()})
    claimed = manifest.source.sha256
    return tuple(parts.values()), claimed if _DIGEST.fullmatch(claimed) else ""


def _artifact(path: Path, name: str) -> Part:
    try:
        return read_file(path / name)
    except FileNotFoundError as error:
        raise ModelError(
            f"{name} is not here: a package is wanted with all of its files"
        ) from error


def _joined(parts: tuple[Part, ...]) -> Header:
    """A tensor of no layer may be in several files of a package: the first one counts."""
    first = parts[0].header
    found = {one.name: one for part in reversed(parts) for one in reversed(part.header.tensors)}
    return Header(first.metadata, tuple(reversed(found.values())), first.entries)
