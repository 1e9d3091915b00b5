"""`meshnode mesh`: the meshes that a data directory remembers, and the mesh key on its way."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from p2p_mesh import state
from p2p_mesh.cli import output
from p2p_mesh.cli.client import data_dir_option, data_path, json_option
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import SettingsError

MAX_TEXT = 65_536
"""Bytes that are read for a mesh key, which is far shorter."""


@click.group("mesh")
def command() -> None:
    """The meshes that this node remembers, and the key of its mesh.

    \b
    Examples:
      meshnode mesh list
      meshnode mesh use home
      meshnode mesh export home.key
      meshnode mesh import home.key
    """


@command.command("list")
@data_dir_option
@json_option
def show(data_dir: str | None, as_json: bool) -> None:
    """List the meshes that this node has been in; the first is the one it is in now.

    \b
    Examples:
      meshnode mesh list
      meshnode mesh list --json | jq -r '.[0].id'
    """
    directory = data_path(data_dir)
    key = state.mesh_key(directory)
    held = public_bytes(key) if key is not None else None
    found = [
        {"id": one.id, "name": one.name, "current": place == 0, "key": one.mesh == held}
        for place, one in enumerate(state.meshes(directory))
    ]
    if as_json:
        output.as_json(found)
    elif not found:
        output.line(f"The node on {directory} has been in no mesh yet")
    else:
        rows = [[str(one["id"]), str(one["name"]), _mark(one["current"]), _mark(one["key"])]
                for one in found]  # fmt: skip
        output.table(("MESH", "NAME", "CURRENT", "KEY"), rows)


def _mark(value: object) -> str:
    return "yes" if value else "-"


@command.command("use")
@click.argument("mesh")
@data_dir_option
@json_option
def use(mesh: str, data_dir: str | None, as_json: bool) -> None:
    """Go to another mesh that this node remembers. The node must be stopped.

    MESH is its id, the beginning of that, or its name.

    \b
    Examples:
      meshnode mesh use home
      meshnode mesh use 5f0c --json
    """
    chosen = state.choose(data_path(data_dir), mesh)
    _say(chosen, f"From its next start the node is in {chosen.name} ({chosen.id})", as_json)


def _say(belonging: state.Belonging, sentence: str, as_json: bool) -> None:
    if as_json:
        output.as_json({"id": belonging.id, "name": belonging.name})
    else:
        output.line(sentence)


@command.command("export")
@click.argument("file", required=False, default="-", type=click.Path(dir_okay=False))
@data_dir_option
@json_option
def send(file: str, data_dir: str | None, as_json: bool) -> None:
    """Write the mesh key to a new FILE that only you can read, or to standard output.

    This is the secret of the mesh: whoever has it lets anybody in, and puts anybody out.

    \b
    Examples:
      meshnode mesh export home.key
      meshnode mesh export | ssh box meshnode mesh import
    """
    secret = state.export_mesh(data_path(data_dir))
    output.note("Keep this secret: whoever has it can let anybody into the mesh, or put them out")
    if file != "-":
        _write_secret(Path(file), secret)
    if as_json:
        output.as_json({"key": secret} if file == "-" else {"file": file})
    else:
        output.line(secret if file == "-" else f"Wrote the mesh key to {file}")


def _write_secret(path: Path, secret: str) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secret + "\n")
    except FileExistsError as error:
        raise SettingsError(f"{path} is there already, and is not written over") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


@command.command("import")
@click.argument("file", required=False, default="-", type=click.Path(dir_okay=False))
@click.option("--replace", is_flag=True, help="Also where the key of another mesh would be lost.")
@data_dir_option
@json_option
def receive(file: str, replace: bool, data_dir: str | None, as_json: bool) -> None:
    """Read a mesh key from FILE or standard input, and go to its mesh. The node must be stopped.

    From then on this node makes invites for that mesh, and revokes, as the first one does.

    \b
    Examples:
      meshnode mesh import home.key
      ssh box meshnode mesh export | meshnode mesh import
    """
    found = state.import_mesh(data_path(data_dir), _read_secret(file), replace=replace)
    _say(found, f"From its next start the node is in {found.name} ({found.id})", as_json)


def _read_secret(file: str) -> str:
    if file == "-":
        return sys.stdin.read(MAX_TEXT)
    try:
        with Path(file).open(encoding="utf-8") as opened:
            return opened.read(MAX_TEXT)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error
