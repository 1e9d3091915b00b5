"""One GGUF file of a package, for engines that want a model whole. It is kept with the stages that
are composed of the same package, and can be made again like them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from p2p_mesh.core.package import check_whole
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Blob
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.source import Part, Source, read_file
from p2p_mesh.serve.package.virtual import Writer, alignment_of

NAME = "whole.gguf"

Progress = Callable[[float], None]


def is_whole(package: LocalPackage) -> bool:
    """Nothing is to be written. A file that is half there has another name."""
    return package.original is not None or (package.stages / NAME).is_file()


async def whole(package: LocalPackage, progress: Progress = lambda _: None) -> Path:
    """The model in one file: that of which the package is a view (the first of them, where it is
    split), or one that is written now. Raises Unavailable where an artifact is missing, ModelError.
    """
    manifest = package.manifest
    beside = {one.path for one in manifest.projectors}
    paths = [one.path for one in manifest.artifacts if one.path not in beside]
    sources = await package.sources(paths)
    if package.original is not None:
        return package.original

    def report(done: float) -> None:
        trio.from_thread.run_sync(progress, done)  # ends the thread where nobody waits for it

    target = package.stages / NAME
    return await trio.to_thread.run_sync(
        _write, package, dict(zip(paths, sources, strict=True)), target, report,
        abandon_on_cancel=True,
    )  # fmt: skip


def _write(
    package: LocalPackage, sources: dict[str, Path], target: Path, progress: Progress
) -> Path:
    try:
        parts = {path: read_file(source) for path, source in sources.items()}
        check_whole(package.manifest, {path: part.header for path, part in parts.items()})
        blob = assemble(tuple(parts.values()))
        if not (target.is_file() and target.stat().st_size == blob.size):
            _copy(blob, target, progress)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror}") from error
    return target


def assemble(parts: Sequence[Part]) -> Blob:
    """The file of all tensors of several, with the keys of the first."""
    source = Source(tuple(parts))
    held = {one.name: (file, one) for file, one in reversed(source.tensors)}  # the first one wins
    writer = Writer(source, alignment_of(parts[0].header))
    return writer.blob(tuple(reversed(held.values())), with_keys=True)


def _copy(blob: Blob, target: Path, progress: Progress) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=".", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in blob.pieces():
                file.write(piece)
                progress(file.tell() / blob.size)
        Path(aside).chmod(0o644)
        Path(aside).replace(target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
