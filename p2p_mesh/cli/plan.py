"""`meshnode plan`: how a model would be served, whole or in stages, by whom, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_standby
from p2p_mesh.errors import LocalError, SettingsError, Unavailable
from p2p_mesh.node import loads
from p2p_mesh.node.plan import whole_here
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve import hardware, store
from p2p_mesh.serve.backend import Load

PATIENCE = 3600.0
"""Seconds: the first time, a file is read as a whole, for the hashes of its parts."""

_ALONE = (
    "{}. A plan takes a running node, which knows the others and how far they are: `meshnode run` "
    "in another terminal, with --join TOKEN to be in a mesh, then this command again"
)


@click.command("plan")
@click.argument("reference", metavar="MODEL", shell_complete=complete_standby)
@click.option("--split", is_flag=True, default=None, help="As with `run --split`: stages anyhow.")
@click.option("--ctx", type=click.IntRange(16, 2**24), help="Context of each request, in tokens.")
@click.option("--parallel", type=click.IntRange(1, 256), help="Requests at a time.")
@click.option(
    "--max-rtt",
    metavar="MS",
    type=click.FloatRange(0, 10_000, min_open=True),
    help="Round trip to a node with a stage.  [default: 80]",
)
@click.option(
    "--stages",
    metavar="FILE",
    type=click.Path(),
    help="Look whether this plan can be kept, which pins nodes and layers.",
)
@click.option(
    "--save", metavar="FILE", type=click.Path(), help="Write the plan, for `run --stages`."
)
@click.option("--force", is_flag=True, help="--save may write over another file.")
@data_dir_option
@json_option
def command(
    reference: str, data_dir: str | None, stages: str | None, save: str | None, as_json: bool,
    force: bool, **asked: Any,
) -> int:  # fmt: skip
    """Show how the running node would serve a model: whole, or in stages over several nodes; who
    would hold which layers, who cannot and why, what is missing, and how fast it would be. Nothing
    is loaded. It ends with code 1 where the model cannot be served, whatever nodes come.

    MODEL is what `meshnode load` takes: a GGUF file, or a model that the node has.

    \b
    Examples:
      meshnode plan ~/models/qwen3-32b-q4_k_m.gguf
      meshnode plan qwen3-32b-q4_k_m --split --ctx 16384
      meshnode plan qwen3-32b-q4_k_m --save plan.json
      meshnode plan qwen3-32b-q4_k_m --stages plan.json
      meshnode plan qwen3-32b-q4_k_m --json | jq .stages.excluded
    """
    try:
        client = Client.find(data_dir)
    except Unavailable as error:
        if not as_json:
            output.line(_alone(reference, asked["ctx"], asked["parallel"]))
        raise Unavailable(_ALONE.format(str(error).partition(";")[0])) from error
    target = Path(save).expanduser() if save is not None else None
    if target is not None and not force:
        _check_free(target)
    found = client.post("/api/plan", _body(reference, stages, asked), PATIENCE)
    if target is not None:
        _save(found, target)
    if as_json:
        output.as_json(found)
    else:
        for text in _lines(found):
            output.line(text)
    return 1 if _is_hopeless(found) else 0


def _alone(reference: str, context: int | None, slots: int | None) -> str:
    """What can be said without a node: whether this machine could serve it whole."""
    plugins = Plugins()
    plugins.load()
    plugins.ask()
    model = store.read(store.find(reference))
    load = Load(model, context=context, slots=slots)
    whole = whole_here(load, plugins.backends(), hardware.measure())
    return f"{model.id} ({model.size_bytes / 1e9:.2f} GB), whole, on this machine: {_whole(whole)}"


def _body(reference: str, stages: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    path = Path(reference).expanduser()
    # The node has another working directory than this shell.
    body = {"model": str(path.absolute()) if path.is_file() else reference, **asked}
    if stages is not None:
        loads.stages(stages)  # what is wrong with it is better said here, with its name
        body["stages"] = json.loads(Path(stages).expanduser().read_bytes())
    return {name: value for name, value in body.items() if value is not None}


def _check_free(path: Path) -> None:
    """Nobody's plan is lost, and no model either, where a name was mistaken."""
    if path.is_file():
        raise SettingsError(f"{path} is there already; --force writes over it")


def _save(found: dict[str, Any], path: Path) -> None:
    if not found["stages"]["fits"]:
        raise LocalError(f"there is no plan to save: {found['stages']['reason']}")
    try:
        path.write_text(json.dumps(found["stages"]["plan"], indent=2) + "\n")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
    output.note(f"{path} is written; `meshnode run --stages {path}` keeps to it")


def _is_hopeless(found: dict[str, Any]) -> bool:
    """Whether it cannot be served, whatever nodes come."""
    return found["choice"] is None and found["stages"].get("final", False)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    verbs = {"whole": "is served whole", "stages": "is cut into stages", None: "waits for nodes"}
    verb = "cannot be served" if _is_hopeless(found) else verbs[found["choice"]]
    yield f"{found['model']} ({found['size_bytes'] / 1e9:.2f} GB) {verb}"
    yield ""
    yield f"Whole, on this node: {_whole(found['whole'])}"
    if found["served_by"]:
        yield f"  served already by {', '.join(found['served_by'])}"
    yield ""
    yield from _stages(found["stages"])


def _whole(whole: dict[str, Any]) -> str:
    if not whole["fits"]:
        return f"no. {whole['reason']}"
    speed = whole["tokens_per_second"]
    return (
        f"yes, by {whole['backend']}: a context of {whole['context']} tokens, {whole['slots']} at "
        f"a time, {whole['memory_bytes'] / 1e9:.2f} GB"
        f"{f', about {speed:.1f} tokens/s for one answer' if speed else ''}"
    )


def _stages(stages: dict[str, Any]) -> Iterator[str]:
    if stages["fits"]:
        yield "In stages:"
        yield from (f"  {line}" for line in stages["words"])
        return
    yield f"In stages: no. {stages['reason']} {stages['advice']}".rstrip()
    if stages["missing_bytes"]:
        yield f"  missing: {stages['missing_bytes'] / 1e9:.2f} GB"
    for one in stages["excluded"]:
        yield f"  left out: {one['name']}: {one['reason']}"
