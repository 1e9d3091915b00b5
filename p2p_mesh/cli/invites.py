"""`meshnode invites`: what was given away, and who came by it."""

from __future__ import annotations

from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option


@click.command("invites")
@data_dir_option
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """List the invites that the running node made, with who came by them.

    The tokens are not shown: they are nowhere but where they were handed to. Only a node that holds
    the mesh key makes invites.

    \b
    Examples:
      meshnode invites
      meshnode invites --json | jq '.[] | select(.used == 0).id'
    """
    found = Client.find(data_dir).get("/api/invites")["invites"]
    if as_json:
        output.as_json(found)
    elif not found:
        output.line("No invite was made here yet; `meshnode invite` makes one")
    else:
        output.table(
            ("INVITE", "ROLE", "MADE", "ENDS", "USED", "JOIN BY", "STATE", "PEERS"),
            [_row(one) for one in found],
        )


def _row(one: dict[str, Any]) -> list[str]:
    used = str(one["used"]) if one["uses"] is None else f"{one['used']} of {one['uses']}"
    state = "revoked" if one["revoked"] else "closed" if one["closed"] else "open"
    dates = [output.date(one["made"]), output.date(one["until"])]
    peers = ", ".join(one["peers"]) or "-"
    return [one["id"], one["role"], *dates, used, output.date(one["join_by"]), state, peers]
