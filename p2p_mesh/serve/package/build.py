"""Writes a package of a GGUF file: the artifacts that it is as a virtual one, each into a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from p2p_mesh.core.manifest import read_manifest
from p2p_mesh.core.package import MANIFEST, PIECES, Manifest
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.packages import describe_source
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.serve.package.virtual import Layout, lay_out, write
from p2p_mesh.serve.store import Digests


def build(
    model: Path, out: Path, *, projectors: Sequence[Path], digests: Digests, job: Job
) -> Manifest:
    """Writes the package into a folder that is new, or empty, or held an earlier try. Its manifest
    comes last: without one it is no package. Raises ModelError, OSError where it cannot write.
    """
    if folders.is_package(out):
        raise ModelError(f"{out} holds a package already: remove it, or name another folder")
    try:
        source = read_source(model)
        layout = lay_out(source, projectors)
    except ModelError as error:
        raise ModelError(f"{model} cannot be made a package: {error}") from error
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
    _check_room(layout, out)
    with _Files(out, layout.blobs) as files:
        found = job.hash(layout.blobs, files.write)
        manifest, pieces = write(layout, found, describe_source(source, digests))
        files.name()
    folders.write_aside(out / PIECES, pieces)
    folders.write_aside(out / MANIFEST, manifest)
    return read_manifest(manifest)


def _check_room(layout: Layout, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    wanted = sum(blob.size for blob in layout.blobs.values())
    found = os.statvfs(out)
    free = found.f_bavail * found.f_frsize
    if wanted > free:
        raise ModelError(
            f"the package takes {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


class _Files:
    """The artifacts' files, each aside until all are whole; what was begun in vain goes."""

    def __init__(self, folder: Path, paths: Iterable[str]) -> None:
        self._paths = {path: folder / path for path in paths}

    def __enter__(self) -> _Files:
        for path in self._paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        self._drop()
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def write(self, path: str, data: bytes) -> None:
        """Adds to the end of one; may be called in several threads, for each file in one."""
        with _aside(self._paths[path]).open("ab") as file:
            file.write(data)

    def name(self) -> None:
        for path in self._paths.values():
            _aside(path).replace(path)

    def _drop(self) -> None:
        for path in self._paths.values():
            _aside(path).unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
