"""`meshnode experts split`: the files of expert shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from meshnode_expert_shards.commands.models import Mixture, opened
from meshnode_expert_shards.commands.plan import Shared, percent, share_options, shared_out
from meshnode_expert_shards.composing import Composed, compose
from p2p_mesh.cli import output
from p2p_mesh.cli.client import json_option
from p2p_mesh.core.experts.assignment import Impossible
from p2p_mesh.errors import LocalError, SettingsError, Unavailable

_BAR = 30


@click.command("split")
@click.argument("reference", metavar="MODEL")
@share_options
@click.option("--node", metavar="I|all", default="all", show_default=True,
              help="The node whose file is written, from 1 on.")  # fmt: skip
@click.option("--output", "folder", metavar="DIR", type=click.Path(file_okay=False), default=".",
              show_default=True, help="Where the files are written.")  # fmt: skip
@click.option("--force", is_flag=True, help="Write over files that are there.")
@json_option
def command(
    reference: str, node: str, folder: str, force: bool, as_json: bool, **shares: Any
) -> None:
    """Write the expert shards of a model: for each node a GGUF file of its own, with all of the
    model but the experts that the node does not have. Any llama.cpp loads it. Only what a file
    takes is read of the model. It ends with code 1, and writes nothing, where a node would keep
    less than --min-mass.

    \b
    Examples:
      meshnode experts split qwen3-30b-a3b-q4_k_m.gguf --nodes 3
      meshnode experts split qwen3-30b-a3b-q4_k_m.gguf --nodes 3 --node 2 --output ~/models
      meshnode experts split qwen3-30b-a3b-q4_k_m.gguf --nodes 2 --min-mass 0.9 --json
    """
    numbers = _numbers(node, shares["nodes"])
    mixture, target = opened(reference), Path(folder).expanduser()
    found = shared_out(mixture, **shares)
    if isinstance(found, Impossible):
        raise LocalError(found.why)
    stem, nodes = f"{mixture.model.id}.shard", shares["nodes"]
    paths = {one: target / f"{stem}-{one}-of-{nodes}.gguf" for one in numbers}
    _check_free(mixture, list(paths.values()), force=force)
    written = {one: _write(mixture, found, one, path) for one, path in paths.items()}
    if as_json:
        output.as_json([_described(found, *one) for one in written.items()])
    else:
        for number, one in written.items():
            _tell(mixture, found, number, one)


def _described(found: Shared, number: int, written: Composed) -> dict[str, Any]:
    return {
        "node": number,
        "path": str(written.path),
        "size_bytes": written.size_bytes,
        "sha256": written.sha256,
        "experts": found.assignment.keep,
        "mass": found.assignment.parts[number - 1].mass,
    }


def _tell(mixture: Mixture, found: Shared, number: int, written: Composed) -> None:
    keep, mass = found.assignment.keep, found.assignment.parts[number - 1].mass
    output.line(
        f"Wrote {written.path}, {written.size_bytes / 1e9:.2f} GB, with {keep} of "
        f"{mixture.layout.experts} experts and {percent(mass)} of the routing"
    )
    output.line(f"It has the SHA-256 {written.sha256}")


def _numbers(node: str, nodes: int) -> Sequence[int]:
    if node == "all":
        return range(1, nodes + 1)
    if not (node.isdecimal() and 1 <= int(node) <= nodes):
        raise SettingsError(f"--node {node} is neither `all` nor one of 1 to {nodes}")
    return (int(node),)


def _check_free(mixture: Mixture, paths: Sequence[Path], *, force: bool) -> None:
    """Nobody's model is lost, and not the one that is split."""
    sources = [part.file.path.resolve() for part in mixture.parts]
    for path in paths:
        if path.resolve() in sources:
            raise SettingsError(f"{path} is the model itself: give another --output")
        if path.exists() and not force:
            raise SettingsError(f"{path} is there already; --force writes over it")


def _write(mixture: Mixture, found: Shared, number: int, path: Path) -> Composed:
    with output.progress() as show:

        def draw(done: float) -> None:
            full = int(done * _BAR)
            show(f"Writing {path.name} [{'#' * full}{'.' * (_BAR - full)}] {done:4.0%}")

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return compose(
                found.recipes[number - 1],
                keys=mixture.sources[0],
                sources=mixture.sources,
                target=path,
                progress=draw,
            )
        except OSError as error:
            raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
