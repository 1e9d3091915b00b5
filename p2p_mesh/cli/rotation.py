"""`meshnode rotate-key`: a new identity for the node."""

from __future__ import annotations

import click

from p2p_mesh import state
from p2p_mesh.cli import output
from p2p_mesh.cli.client import data_dir_option, data_path, json_option


@click.command("rotate-key")
@data_dir_option
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """Give the node a new key, and so a new peer id. The node must be stopped.

    The membership goes over to the new key, where the invite that the node joined by allows it. The
    old key is gone; where it may have been stolen, have the old peer id revoked as well.

    \b
    Examples:
      meshnode rotate-key
      meshnode rotate-key --json | jq -r .before
    """
    rotated = state.rotate_identity(data_path(data_dir))
    if as_json:
        output.as_json({"before": rotated.before, "after": rotated.after})
        return
    output.line(f"The node was {rotated.before}, and is {rotated.after} from now on")
    output.note(
        f"If the old key may be in other hands: meshnode revoke {rotated.before}, on the node that "
        "holds the mesh key"
    )
