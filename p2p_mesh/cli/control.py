"""`meshnode control`: an owner's orders to a node on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option
from p2p_mesh.cli.names import complete_peer, find_peer
from p2p_mesh.cli.watching import until_loaded, until_unloaded
from p2p_mesh.errors import LocalError, SettingsError

PATIENCE = 60.0
"""Seconds for an order, its way included."""

DIGITS = 8
"""Of a digest, so many mean a model."""


@click.command("control")
@click.argument("peer", shell_complete=complete_peer)
@click.argument("action", type=click.Choice(["list", "load", "unload", "stop"]))
@click.argument("model", required=False)
@data_dir_option
@json_option
def command(peer: str, action: str, model: str | None, data_dir: str | None, as_json: bool) -> None:
    """Order a node about that accepted your owner's key.

    PEER is a peer id, or the name of a node that no other peer has. MODEL is one that the node has
    on its disk, as `list` shows them: an id, or the first 8 digits of a digest. The order goes by
    the node that runs here, and is signed with the key that `meshnode owner key` made.

    \b
    Examples:
      meshnode control box list
      meshnode control box load qwen3-8b-q4_k_m
      meshnode control box unload 0123abcd
      meshnode control box stop --json
    """
    if (model is None) == (action in ("load", "unload")):
        need = "needs a MODEL" if model is None else "takes no MODEL"
        raise SettingsError(f"`{action}` {need}; see `meshnode control --help`")
    client = Client.find(data_dir)
    remote = Remote(client, find_peer(peer, client.get("/api/status")["peers"]))
    match action:
        case "load" | "unload":
            assert model is not None
            done = remote.load(model) if action == "load" else remote.unload(model)
        case _:
            done = {"models": remote.order(action)}
    if as_json:
        output.as_json({"peer": remote.peer, "action": action, **done})
    else:
        _show(peer, action, done)


class Remote:
    """A node elsewhere, as its owner has it."""

    def __init__(self, client: Client, peer: str) -> None:
        self._client = client
        self.peer = peer

    def order(self, command: str, digest: str | None = None) -> list[dict[str, Any]]:
        """The models of the node, once it has begun to do it."""
        body = {"peer": self.peer, "command": command, "digest": digest}
        models: list[dict[str, Any]] = self._client.post("/api/orders", body, PATIENCE)["models"]
        return models

    def load(self, text: str) -> dict[str, Any]:
        model = find_model(text, self.order("list"))
        if model["state"] not in ("ready", "loading"):
            self.order("load", model["digest"])
        return {"model": dict(until_loaded(model["id"], lambda: self.order("list")))}

    def unload(self, text: str) -> dict[str, Any]:
        model = find_model(text, self.order("list"))
        self.order("unload", model["digest"])
        waited = until_unloaded(model["id"], self._unloading)
        return {"model": model, "waited_for": waited}

    def _unloading(self) -> list[dict[str, Any]]:
        return [one for one in self.order("list") if one["state"] == "unloading"]


def find_model(text: str, models: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model that is meant by its id, or the first digits of its digest. Raises LocalError."""
    found = [one for one in models if one["id"] == text]
    if not found and len(text) >= DIGITS:
        found = [one for one in models if (one["digest"] or "").startswith(text)]
    if len({one["digest"] for one in found}) > 1:
        names = ", ".join(one["id"] for one in found)
        raise LocalError(f"{text} means {names}: give more digits")
    if not found:
        names = ", ".join(one["id"] for one in models)
        raise LocalError(f"that node has no model {text}; it has {names or 'none'}")
    if found[0]["digest"] is None:
        raise LocalError(
            f"the digest of {found[0]['id']} is not known: that node still reads the file (try "
            "again), or it is the model of an endpoint"
        )
    return found[0]


def _show(peer: str, action: str, done: dict[str, Any]) -> None:
    match action:
        case "list":
            _show_models(done["models"])
        case "stop":
            output.line(f"{peer} stops")
        case "load":
            output.line(f"{done['model']['id']} is ready on {peer}")
        case _:
            output.line(f"{done['model']['id']} is unloaded on {peer}")


def _show_models(models: Sequence[dict[str, Any]]) -> None:
    if not models:
        output.line("That node has no model")
        return
    output.table(
        ("MODEL", "STATE", "ACTIVE", "QUEUED", "DIGEST"),
        [
            [one["id"], _state(one), str(one["active"]), str(one["queued"]),
             (one["digest"] or "-")[:12]]
            for one in models
        ],
    )  # fmt: skip


def _state(one: dict[str, Any]) -> str:
    if one["state"] == "loading":
        return f"{one['progress']:.0%}"
    return str(one["error"] or one["state"])
