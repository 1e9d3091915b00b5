"""`meshnode plan`: how a model would be served, whole, in stages, by expert shards or flash, by
whom, and why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_standby
from p2p_mesh.core.plans import SAID
from p2p_mesh.errors import LocalError, SettingsError, Unavailable
from p2p_mesh.node import loads
from p2p_mesh.node.plan import flash_here, whole_here
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
@click.option("--flash", is_flag=True, default=None, help="As with `run --flash`: flash anyhow.")
@click.option("--shards", is_flag=True, default=None, help="As with `run --shards`: shards anyhow.")
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
    """Show how the running node would serve a model: whole; in stages over several nodes; by expert
    shards, of which each node has one; or flash, with its experts on the disk. Of each it says
    whether it can be, with numbers, and how fast it would be; and which one is taken, and why.
    Nothing is loaded. It ends with code 1 where the model cannot be served, whatever nodes come.

    MODEL is what `meshnode load` takes: a GGUF file, or a model that the node has.

    \b
    Examples:
      meshnode plan ~/models/qwen3-32b-q4_k_m.gguf
      meshnode plan qwen3-32b-q4_k_m --split --ctx 16384
      meshnode plan qwen3-32b-q4_k_m --save plan.json
      meshnode plan qwen3-32b-q4_k_m --stages plan.json
      meshnode plan qwen3-30b-a3b-q4_k_m --flash
      meshnode plan qwen3-32b-q4_k_m --json | jq .stages.excluded
    """
    flags = ("split", "flash", "shards")
    loads.check_ways({"--stages": stages, **{f"--{one}": asked[one] for one in flags}})
    try:
        client = Client.find(data_dir)
    except Unavailable as error:
        if not as_json:
            for text in _alone(reference, asked["ctx"], asked["parallel"]):
                output.line(text)
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


def _alone(reference: str, context: int | None, slots: int | None) -> Iterator[str]:
    """What can be said without a node: whether this machine could serve it whole, or flash."""
    plugins = Plugins()
    plugins.load()
    plugins.ask()
    model = store.read(store.find(reference))
    load = Load(model, context=context, slots=slots)
    resources = hardware.measure()
    whole = whole_here(load, plugins.backends(), resources)
    name = f"{model.id} ({model.size_bytes / 1e9:.2f} GB)"
    yield f"{name}, whole, on this machine: {_whole(whole)}"
    if model.experts:
        resources = msgspec.structs.replace(
            resources, bandwidth=hardware.bandwidth(), disk=hardware.disk([model])
        )
        flash = _flash(flash_here(load, plugins.backends(), resources))
        yield f"{name}, flash, on this machine: {next(flash)}"
        yield from flash


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
    return found["choice"] is None and not found["waits"]


_VERBS = {
    "whole": "is served whole",
    "stages": "is cut into stages",
    "shards": "is served by expert shards",
    "flash": "is served flash, with its experts on the disk",
    None: "waits for nodes",
}


def _lines(found: dict[str, Any]) -> Iterator[str]:
    verb = "cannot be served" if _is_hopeless(found) else _VERBS[found["choice"]]
    yield f"{found['model']} ({found['size_bytes'] / 1e9:.2f} GB) {verb}"
    yield f"  why: {found['why']}"
    yield ""
    yield f"Whole, on this node: {_whole(found['whole'])}"
    if found["served_by"]:
        yield f"  served already by {', '.join(found['served_by'])}"
    yield ""
    yield from _stages(found["stages"])
    yield ""
    shards, flash = _shards(found["shards"]), _flash(found["flash"])
    yield f"By expert shards: {next(shards)}"
    yield from shards
    yield ""
    yield f"Flash, with experts on the disk of this node: {next(flash)}"
    yield from flash


def _whole(whole: dict[str, Any]) -> str:
    return _fit(whole) if whole["fits"] else f"no. {whole['reason']}"


def _fit(way: dict[str, Any]) -> str:
    """What a backend says of a model that it would serve."""
    speed = way["tokens_per_second"]
    return (
        f"yes, by {way['backend']}: a context of {way['context']} tokens, {way['slots']} at a "
        f"time, {way['memory_bytes'] / 1e9:.2f} GB"
        f"{f', about {speed:.1f} tokens/s for one answer' if speed else ''}"
    )


def _unfit(way: dict[str, Any]) -> str:
    return f"no. {way['reason']} {way.get('advice', '')}".rstrip()


def _flash(flash: dict[str, Any]) -> Iterator[str]:
    if not flash["fits"]:
        yield _unfit(flash)
        return
    yield _fit(flash)
    if "cache_share" in flash:
        yield (
            f"  {flash['cache_share']:.0%} of its experts fit into memory; of those that a token "
            f"needs, {flash['hit_rate']:.0%} at least are expected there"
        )
    if "bytes_per_token" in flash:
        disk = flash.get("disk_bandwidth")
        speed = f"gives {disk / 1e6:.0f} MB/s" if disk else "has not been measured"
        read = flash["bytes_per_token"] / 1e6
        yield f"  read from the disk for a token: {read:.1f} MB at most; the disk {speed}"


def _shards(shards: dict[str, Any]) -> Iterator[str]:
    yield _fit(shards) if shards["fits"] else _unfit(shards)
    if "experts_kept" in shards:
        kept, experts = shards["experts_kept"], shards["experts"]
        yield f"  each node has {kept} of the {experts} experts of a layer"
    nodes = shards.get("nodes", [])
    for one in nodes[:SAID]:
        yield (
            f"  {one['name'] or one['node']}: {one['mass']:.2f} of the routing, "
            f"{one['size_bytes'] / 1e9:.2f} GB"
        )
    if len(nodes) > SAID:
        yield f"  and {len(nodes) - SAID} more nodes"


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
