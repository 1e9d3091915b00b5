"""`meshnode load`: the running node serves one more model."""

from __future__ import annotations

from pathlib import Path

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_standby
from p2p_mesh.cli.watching import until_loaded
from p2p_mesh.core.package import MANIFEST

PATIENCE = 60.0
"""Seconds for the node to look at the file."""


@click.command("load")
@click.argument("reference", metavar="REF", shell_complete=complete_standby)
@data_dir_option
@json_option
def command(reference: str, data_dir: str | None, as_json: bool) -> None:
    """Have the running node serve a model, and wait until it does.

    REF is a GGUF file, a package (a folder, or hf://ns/repo@rev), the name of a bundled model, or a
    model that the node has on its disk, by its id or the first 8 digits of its digest. Interrupting
    this does not stop the loading.

    \b
    Examples:
      meshnode load ~/models/qwen3-8b-q4_k_m.gguf
      meshnode load qwen3-8b-q4_k_m
      meshnode load 0123abcd --json | jq .context
    """
    client = Client.find(data_dir)
    path = Path(reference).expanduser()
    # The node has another working directory than this shell.
    is_here = path.is_file() or (path / MANIFEST).is_file()
    wanted = str(path.absolute()) if is_here else reference
    model = client.post("/api/load", {"model": wanted}, PATIENCE)["model"]
    found = until_loaded(model, lambda: client.get("/api/status")["models"])
    if as_json:
        output.as_json(found)
    else:
        context, slots = found["context"] or "unknown", found["slots"]
        output.line(f"{model} is ready: context {context}, {slots} at a time, on {found['device']}")
