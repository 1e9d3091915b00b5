"""`meshnode plugins`: what is installed, and what was skipped and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.errors import Unavailable
from p2p_mesh.plugins import Plugins


@click.command("plugins")
@data_dir_option
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """List the plugins: of the running node, or of this installation where none runs.

    \b
    Examples:
      meshnode plugins
      meshnode plugins --json
    """
    found = _find(data_dir)
    if as_json:
        output.as_json(found)
    else:
        output.table(
            ("PLUGIN", "VERSION", "STATE", "REASON"),
            [[one["name"], one["version"], one["state"], one["reason"]] for one in found],
        )


def _find(data_dir: str | None) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = Client.find(data_dir).get("/api/status")["plugins"]
    except Unavailable:
        plugins = Plugins()
        plugins.load()
        plugins.ask()
        found = [dataclasses.asdict(one) for one in plugins.report()]
    return found
