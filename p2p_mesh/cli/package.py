"""`meshnode package`: models as layer packages on this machine, made, checked and cleaned up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from p2p_mesh import settings as settings_module
from p2p_mesh.cli import output
from p2p_mesh.cli.client import json_option
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve import store
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.build import build
from p2p_mesh.serve.package.prune import Kept, prune
from p2p_mesh.serve.package.verification import Report, verify

_BAR = 30


@click.group("package")
def command() -> None:
    """Models as layer packages: one file for each layer, so that a node fetches what it needs.

    \b
    Examples:
      meshnode package build qwen3-8b-q4_k_m.gguf --out qwen3-8b
      meshnode package verify qwen3-8b
      meshnode package prune --dry-run
    """


@command.command("build")
@click.argument("model", metavar="MODEL")
@click.option("--out", required=True, metavar="DIR", type=click.Path(file_okay=False),
              help="Where the package is written: a new folder, or an empty one.")  # fmt: skip
@click.option("--mmproj", multiple=True, metavar="FILE", type=click.Path(dir_okay=False),
              help="A projector of the model that goes with it. Repeatable.")  # fmt: skip
@json_option
def make(model: str, out: str, mmproj: tuple[str, ...], as_json: bool) -> None:
    """Write the layer package of a model.

    MODEL is a GGUF file, the first file of a split one, or the name of a bundled model. The same
    file always gives the same package. It takes as much room again as the model.

    \b
    Examples:
      meshnode package build qwen3-8b-q4_k_m.gguf --out qwen3-8b
      meshnode package build big-00001-of-00004.gguf --out big
      meshnode package build gemma-3-4b.gguf --mmproj mmproj-gemma.gguf --out gemma --json
    """
    path, folder = _gguf(model), Path(out).expanduser()
    projectors = [Path(one).expanduser() for one in mmproj]
    with _bar("Writing") as show:
        try:
            digests = store.Digests(settings_module.cache_dir() / "digests.json")
            found = build(path, folder, projectors=projectors, digests=digests, job=Job(show))
        except OSError as error:
            raise Unavailable(f"{folder} cannot be written: {error.strerror}") from error
    digest = store.read(folder).digest
    files, size = len(found.artifacts), sum(one.artifact_bytes for one in found.artifacts)
    if as_json:
        output.as_json({"path": str(folder), "manifest_sha256": digest, "files": files,
                        "size_bytes": size, "layers": found.layer_count})  # fmt: skip
    else:
        output.line(f"Wrote {files} files, {_size(size)}, to {folder}: {found.model_id}, "
                    f"{found.layer_count} layers")  # fmt: skip
        output.line(f"Its manifest has the SHA-256 {digest}")


@command.command("verify")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@json_option
def check(folder: str, as_json: bool) -> int:
    """Check a layer package: its manifest, and the paths, sizes, hashes and tensors of its files.

    It ends with code 2 where something is wrong, and says what.

    \b
    Examples:
      meshnode package verify qwen3-8b
      meshnode package verify qwen3-8b --json | jq .problems
    """
    with _bar("Reading") as show:
        found = verify(Path(folder).expanduser(), Job(show))
    if as_json:
        output.as_json(_report(found))
    else:
        _tell(found)
    return 2 if found.problems else 0


@command.command("prune")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
def clean(dry_run: bool, as_json: bool) -> None:
    """Remove fetched artifacts and composed stages from the cache of this user.

    What a running node uses stays, and so does what came from a hub: it lies in the cache of the
    hub's library, for which there is `hf cache`. All that goes can be made or fetched again.

    \b
    Examples:
      meshnode package prune --dry-run
      meshnode package prune
      meshnode package prune --json | jq 'map(.size_bytes) | add'
    """
    try:
        found = prune(settings_module.cache_dir() / "packages", dry_run=dry_run)
    except OSError as error:
        raise Unavailable(f"{error.filename} cannot be removed: {error.strerror}") from error
    if as_json:
        output.as_json([_kept(one, dry_run=dry_run) for one in found])
    else:
        _list(found, dry_run=dry_run)


def _gguf(reference: str) -> Path:
    if reference.startswith("hf://"):
        raise ModelError(
            f"{reference} is a package already, or none at all: build takes a GGUF file of this "
            f"machine; `meshnode run --model {reference}` serves a package"
        )
    path = store.find(reference)
    if path.is_dir():
        raise ModelError(f"{path} is a package already")
    return path


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on standard error, where that is a terminal."""
    with output.progress() as show:

        def draw(done: float) -> None:
            full = int(done * _BAR)
            show(f"{what} [{'#' * full}{'.' * (_BAR - full)}] {done:4.0%}")

        yield draw


def _report(found: Report) -> dict[str, object]:
    return {
        "model_id": found.manifest.model_id,
        "manifest_sha256": found.digest,
        "layers": found.manifest.layer_count,
        "files": len(found.manifest.artifacts),
        "has_pieces": found.has_pieces,
        "problems": [{"path": one.path, "reason": one.reason} for one in found.problems],
    }


def _tell(found: Report) -> None:
    for one in found.problems:
        output.line(f"{one.path or 'The package'}: {one.reason}")
    if found.problems:
        return
    output.line(f"{found.manifest.model_id}: {len(found.manifest.artifacts)} files, "
                f"{found.manifest.layer_count} layers, all as the manifest says")  # fmt: skip
    output.line(f"Its manifest has the SHA-256 {found.digest}")
    if not found.has_pieces:
        output.line("It has no list of the hashes of its pieces: peers check whole files of it")


def _kept(one: Kept, *, dry_run: bool) -> dict[str, object]:
    return {
        "name": one.name,
        "manifest_sha256": one.manifest,
        "artifacts_bytes": one.artifacts_bytes,
        "stages_bytes": one.stages_bytes,
        "linked_bytes": one.linked_bytes,
        "size_bytes": one.size_bytes,
        "used": one.is_used,
        "removed": not (dry_run or one.is_used),
    }


def _list(found: tuple[Kept, ...], *, dry_run: bool) -> None:
    if found:
        rows = [[one.name, one.manifest[:12], _size(one.artifacts_bytes), _size(one.stages_bytes),
                 "in use" if one.is_used else "goes" if dry_run else "gone"]
                for one in found]  # fmt: skip
        output.table(("MODEL", "MANIFEST", "ARTIFACTS", "STAGES", "STATE"), rows)
    free = sum(one.size_bytes for one in found if not one.is_used)
    output.line(f"{'Would free' if dry_run else 'Freed'} {_size(free)}")
    if linked := sum(one.linked_bytes for one in found if not one.is_used):
        output.line(f"{_size(linked)} from the hub stay in its own cache: see `hf cache --help`")


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
