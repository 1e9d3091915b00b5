"""`meshnode unload`: the running node serves one model less."""

from __future__ import annotations

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_served
from p2p_mesh.cli.watching import until_unloaded


@click.command("unload")
@click.argument("model", shell_complete=complete_served)
@data_dir_option
@json_option
def command(model: str, data_dir: str | None, as_json: bool) -> None:
    """Have the running node serve a model no longer, and wait until it is unloaded.

    It takes no more requests at once; answers that run have a minute to end. The file stays on the
    node's disk, and is not served again before `meshnode load`. MODEL is an id, or the first 8
    digits of a digest.

    \b
    Examples:
      meshnode unload qwen3-8b-q4_k_m
      meshnode unload 0123abcd --json
    """
    client = Client.find(data_dir)
    name = client.post("/api/unload", {"model": model})["model"]
    waited = until_unloaded(name, lambda: client.get("/api/status")["unloading"])
    if as_json:
        output.as_json({"model": name, "waited_for": waited})
    else:
        output.line(f"{name} is unloaded")
