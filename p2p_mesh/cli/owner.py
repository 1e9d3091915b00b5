"""`meshnode owner`: the key by which an owner orders its nodes about."""

from __future__ import annotations

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import data_dir_option, data_path, json_option
from p2p_mesh.core.control import owner_text
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.state.owner import make_owner_key


@click.group("owner")
def command() -> None:
    """Own nodes on other machines: load, unload and stop there (`meshnode control`).

    \b
    Examples:
      meshnode owner key
      meshnode run --accept-owner $(meshnode owner key)
    """


@command.command("key")
@data_dir_option
@json_option
def key(data_dir: str | None, as_json: bool) -> None:
    """Print the public half of this data directory's owner key, which is made if need be.

    It is no secret. The other half stays in owner.key: whoever has that file is the owner.

    \b
    Examples:
      meshnode owner key
      meshnode owner key --json | jq -r .owner
    """
    owner = owner_text(public_bytes(make_owner_key(data_path(data_dir))))
    if as_json:
        output.as_json({"owner": owner})
        return
    output.line(owner)
    output.note(f"A node obeys it after: meshnode run --accept-owner {owner}")
