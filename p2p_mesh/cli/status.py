"""`meshnode status`: what the running node does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from p2p_mesh.cli import output
from p2p_mesh.cli.client import Client, data_dir_option, json_option

_OF_DISK = frozenset({
    "expert_hit_rate", "disk_bytes_per_token", "disk_bandwidth_bytes", "disk_wait_share"
})  # fmt: skip


@click.command("status")
@data_dir_option
@json_option
def command(data_dir: str | None, as_json: bool) -> None:
    """Show the running node: its addresses, models, endpoints and peers, and who is suspect.

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
    _show_head(found)
    for title, rows in _tables(found):
        if rows:
            output.line("")
            output.table(title, rows)
        if title[0] == "MODEL":
            _show_more(found["models"])


def _show_head(found: dict[str, Any]) -> None:
    output.line(f"{found['name']}  meshnode {found['version']}, up {found['uptime_s']:.0f} s")
    for label, key in (("API", "api_url"), ("Console", "console_url"), ("Peer", "peer_id"),
                       ("Mesh", "mesh_id"), ("Role", "role")):  # fmt: skip
        output.line(f"  {label:<8} {found[key] or 'starting'}")
    for owner in found["owners"]:
        output.line(f"  Owner    {owner}")
    if found["is_revoked"]:
        output.line("  Revoked  this node's membership was taken back; it goes on alone")
    if found["revoked_peers"]:
        output.line(f"  Revoked  {found['revoked_peers']} of this mesh's peers")


def _show_more(models: list[dict[str, Any]]) -> None:
    """What is too long for a column: why a model is not ready, and who holds its layers."""
    for one in models:
        notes = one.get("notes", ())
        for text in (*([one["error"]] if one["error"] else []), *notes):
            output.line(f"  {one['id']}: {text}")
        if (shard := one.get("shard")) and not any(map(_tells_shard, notes)):
            output.line(f"  {one['id']}: {_shard(shard)}")
        if measures := one.get("measures"):
            output.line(f"  {one['id']}: {_measured(measures)}")


def _tells_shard(note: str) -> bool:
    """Whether the engine says itself what shard it has, and more of it."""
    return note.startswith("expert shard")


def _shard(shard: dict[str, Any]) -> str:
    return (
        f"an expert shard, with {shard['mass']:.1%} of the routing mass of the whole model "
        f"({shard['model'][:12]})"
    )


def _measured(measures: dict[str, float]) -> str:
    """What an engine has measured: that of a disk in words, anything else by its names."""
    if _OF_DISK - measures.keys():
        return ", ".join(f"{name} {round(value, 4):.15g}" for name, value in measures.items())
    if not measures["disk_bytes_per_token"]:
        return f"hit rate {measures['expert_hit_rate']:.0%}, nothing was read from the disk of late"
    return (
        f"hit rate {measures['expert_hit_rate']:.0%}, "
        f"{measures['disk_bytes_per_token'] / 1e6:.0f} MB a token at "
        f"{measures['disk_bandwidth_bytes'] / 1e9:.1f} GB/s, "
        f"{measures['disk_wait_share']:.0%} of the time waiting for the disk"
    )


def _tables(found: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], list[list[str]]]]:
    yield (
        ("MODEL", "STATE", "CONTEXT", "SLOTS", "ACTIVE", "QUEUED", "DEVICE"),
        [_model(one) for one in found["models"]],
    )
    yield (
        ("UNLOADING", "ACTIVE", "QUEUED"),
        [[one["id"], str(one["active"]), str(one["queued"])] for one in found["unloading"]],
    )
    yield ("STANDBY", "SIZE", "DIGEST"), [_standby(one) for one in found["standby"]]
    yield (
        ("DEMAND", "REQUESTS A MINUTE"),
        [[model, f"{rate:.1f}"] for model, rate in found["demand"].items()],
    )
    yield (
        ("FETCHING", "DONE", "SIZE", "MB/S", "FROM"),
        [_fetching(one) for one in found["fetching"]],
    )
    yield (
        ("ENDPOINT", "STATE", "REASON"),
        [[one["name"], one["state"], one["reason"] or "-"] for one in found["endpoints"]],
    )
    yield ("PEER", "NAME", "STATE", "MODELS"), [_peer(one) for one in found["peers"]]


def _model(one: dict[str, Any]) -> list[str]:
    state = f"{one['progress']:.0%}" if one["state"] == "loading" else one["state"]
    if one["error"] and one["state"] == "loading":
        state = "waiting" if one.get("waiting") else "restarting"
    numbers = [str(one[key] if one[key] is not None else "-") for key in ("context", "slots")]
    counts = [str(one[key]) for key in ("active", "queued")]
    return [one["id"], state, *numbers, *counts, one.get("device") or "-"]


def _standby(one: dict[str, Any]) -> list[str]:
    return [one["id"], f"{one['size_bytes'] / 1e9:.1f} GB", (one["digest"] or "-")[:12]]


def _fetching(one: dict[str, Any]) -> list[str]:
    done = one["done_bytes"] / max(1, one["total_bytes"])
    size, rate = f"{one['total_bytes'] / 1e9:.1f} GB", f"{one['rate'] / 1e6:.0f}"
    return [one["model"], f"{done:.0%}", size, rate, f"{len(one['from'])} peers"]


def _peer(one: dict[str, Any]) -> list[str]:
    return [one["peer_id"], one["name"], one["state"], ", ".join(one["models"])]
