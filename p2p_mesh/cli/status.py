"""`meshnode status`: what the running node does."""

from __future__ import annotations

from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option


@click.command("status")
@data_dir_option
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """Show the running node: its addresses, models, endpoints and peers.

    \b
    Examples:
      meshnode status
      meshnode status --json | jq '.models[].state'
    """
    found = Client.find(data_dir).get("/api/status")
    if as_json:
        output.as_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    output.line(f"{found['name']}  meshnode {found['version']}, up {found['uptime_s']:.0f} s")
    for label, key in (("API", "api_url"), ("Console", "console_url"), ("Peer", "peer_id"),
                       ("Mesh", "mesh_id"), ("Role", "role")):  # fmt: skip
        output.line(f"  {label:<8} {found[key] or 'starting'}")
    if found["models"]:
        output.line("")
        output.table(
            ("MODEL", "STATE", "CONTEXT", "SLOTS", "ACTIVE", "QUEUED", "DEVICE"),
            [_model(one) for one in found["models"]],
        )
    if found["endpoints"]:
        output.line("")
        output.table(
            ("ENDPOINT", "STATE", "REASON"),
            [[one["name"], one["state"], one["reason"] or "-"] for one in found["endpoints"]],
        )
    if found["peers"]:
        output.line("")
        output.table(("PEER", "NAME", "STATE", "MODELS"), [_peer(one) for one in found["peers"]])


def _model(one: dict[str, Any]) -> list[str]:
    state = f"{one['progress']:.0%}" if one["state"] == "loading" else one["state"]
    numbers = [str(one[key] if one[key] is not None else "-") for key in ("context", "slots")]
    counts = [str(one[key]) for key in ("active", "queued")]
    return [one["id"], one["error"] or state, *numbers, *counts, one.get("device") or "-"]


def _peer(one: dict[str, Any]) -> list[str]:
    return [one["peer_id"], one["name"], one["state"], ", ".join(one["models"])]
