"""What the cache holds of packages, and which of it can go: composed stages and fetched artifacts
of packages that no running node uses.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from p2p_mesh.core.manifest import read_manifest
from p2p_mesh.core.package import MANIFEST, PIECES
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.folder import INDEX, ORIGIN
from p2p_mesh.serve.package.incoming import PART
from p2p_mesh.serve.package.local import LocalPackage

LOCK = ".lock"
"""In the folder of a package: a node that uses it holds a lock on it. No artifact has that name."""
STAGES = "stages"
"""The folder of all composed stages, beside that of the packages."""

_OURS = frozenset({MANIFEST, PIECES, ORIGIN, INDEX, LOCK})
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache holds of one package."""

    manifest: str
    name: str
    artifacts_bytes: int
    stages_bytes: int
    linked_bytes: int
    """What links of it lead to, in the cache of the hub's library, which other programs use: they
    take room, and stay."""
    is_used: bool
    """By a node that runs: it stays."""

    @property
    def size_bytes(self) -> int:
        return self.artifacts_bytes + self.stages_bytes


def hold(package: LocalPackage) -> None:
    """Keeps a package from being pruned, for as long as this object lives."""
    try:
        package.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(package.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return  # a cache that cannot be written cannot be pruned either
    weakref.finalize(package, os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_SH)


def usage(cache: Path) -> int:
    """The bytes that fetched artifacts, and what came from a hub, and composed stages take."""
    return _size(cache) + _linked(cache) + _size(cache.parent / STAGES)


def prune(cache: Path, *, dry_run: bool = False) -> tuple[Kept, ...]:
    """Removes what no node uses, and says all that there was. Raises OSError."""
    found = (_prune(cache, manifest, dry_run=dry_run) for manifest in _manifests(cache))
    return tuple(kept for kept in found if kept.size_bytes or kept.linked_bytes)


def _manifests(cache: Path) -> list[str]:
    parents = (one for one in (cache, cache.parent / STAGES) if one.is_dir())
    names = {one.name for parent in parents for one in parent.iterdir() if one.is_dir()}
    return sorted(name for name in names if _SHA256.fullmatch(name))


def _prune(cache: Path, manifest: str, *, dry_run: bool) -> Kept:
    package, stages = cache / manifest, cache.parent / STAGES / manifest
    with _claimed(package) as is_free:
        kept = Kept(
            manifest, _name(package), artifacts_bytes=_size(package), stages_bytes=_size(stages),
            linked_bytes=_linked(package), is_used=not is_free,
        )  # fmt: skip
        if is_free and not dry_run:
            _empty(package)
            if stages.is_dir():
                shutil.rmtree(stages)
    return kept


@contextmanager
def _claimed(package: Path) -> Iterator[bool]:
    """Whether no node uses a package; meanwhile none begins to."""
    try:
        handle = os.open(package / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _empty(package: Path) -> None:
    """What a GGUF file's hashes are stays: it took long to learn, and is small."""
    if not package.is_dir():
        return
    if not folders.read_origin(package).file:
        shutil.rmtree(package)
        return
    for one in package.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        elif one.name not in _OURS:
            one.unlink()


def _name(package: Path) -> str:
    try:
        return read_manifest(folders.read_manifest_of(package)).model_id
    except ModelError:
        return "unknown"


def _linked(folder: Path) -> int:
    """Of the files that links lead to, each once: packages may share some."""
    found: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with suppress(OSError):  # cleaned away
                if path.is_symlink() and stat.S_ISREG((file := path.stat()).st_mode):
                    found[file.st_dev, file.st_ino] = file.st_size
    return sum(found.values())


def _taken(found: os.stat_result) -> int:
    """What a file takes that has holes where nothing was fetched."""
    return min(found.st_size, found.st_blocks * 512)


def _size(folder: Path) -> int:
    """Of the files in it: not of what links lead to, nor of our own small ones."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            found = os.lstat(os.path.join(place, name))
            if stat.S_ISREG(found.st_mode) and name not in _OURS:
                total += _taken(found) if name.endswith(PART) else found.st_size
    return total
