"""What `GET /api/status` and `meshnode status --json` show of a node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from p2p_mesh import __version__
from p2p_mesh.node.models import Models
from p2p_mesh.serve.supervisor import Hosted

if TYPE_CHECKING:
    from p2p_mesh.node.node import Node


def status(node: Node, now: float) -> dict[str, Any]:
    """Plain values only. The invite and every key are left out."""
    network, belonging = node.network, node.belonging
    return {
        "version": __version__,
        "name": node.settings.node_name,
        "pid": os.getpid(),
        "peer_id": network.peer_id if network else None,
        "mesh_id": belonging.id if belonging else None,
        "mesh_name": belonging.name if belonging else None,
        "role": node.role,
        "api_url": node.api_url,
        "console_url": node.console_url,
        "p2p_addrs": list(network.addresses()) if network else [],
        "uptime_s": round(now - node.started, 1),
        "models": [_model(one, node.models) for one in node.hosted.values()],
        "unloading": [
            {"id": one.id, "active": one.active, "queued": one.queued}
            for one in node.models.leaving()
        ],
        "standby": [
            {"id": one.id, "digest": one.digest, "size_bytes": one.size_bytes}
            for one in node.models.standby()
        ],
        "wishes": sorted(node.models.wishes()),
        "demand": {model: round(rate, 2) for model, rate in sorted(node.demanded.rates().items())},
        "endpoints": [
            {"name": one.name, "state": one.state, "reason": one.reason} for one in node.sourced
        ],
        "fetching": node.artifacts.status(),
        "packages": len(node.artifacts.library.announced()),
        "peers": list(_peers(node)),
        "revoked_peers": len(network.revoked.peers) if network else 0,
        "is_revoked": network.is_revoked if network else False,
        "is_holder": node.membership.is_holder,
        "owners": list(node.settings.accept_owner),
        "resources": msgspec.structs.asdict(node.measured()),
        "plugins": [
            {"name": one.name, "version": one.version, "state": one.state, "reason": one.reason}
            for one in node.plugins.report()
        ],
    }


def _model(hosted: Hosted, models: Models) -> dict[str, Any]:
    about, served = hosted.description, hosted.served()
    shard = served.shard if served else None
    return {
        "id": hosted.id,
        "state": hosted.state,
        "waiting": hosted.is_waiting,
        "progress": round(hosted.progress, 3),
        "error": hosted.error,
        "context": (about.context or None) if about else None,
        "slots": about.slots if about else None,
        "device": about.device if about else None,
        "active": hosted.active,
        "queued": hosted.queued,
        "digest": hosted.digest,
        "engine_pid": about.pid if about else None,
        "notes": list(hosted.notes),
        "measures": hosted.measures,
        "shard": msgspec.structs.asdict(shard) if shard else None,
        "planned": models.is_planned(hosted.id),
    }


def _peers(node: Node) -> Iterator[dict[str, Any]]:
    """The other members that announce themselves, and whoever is connected besides."""
    connected = node.members.connected if node.members else {}
    me = node.network.peer_id if node.network else None
    announced = {offer.peer: offer.announcement for offer in node.inventory.offers()}
    for peer in sorted((announced.keys() | connected.keys()) - {me}):
        announcement = announced.get(peer)
        yield {
            "peer_id": peer,
            "name": announcement.name if announcement else "",
            "role": connected[peer].role if peer in connected else "member",
            "state": _state(peer in connected, node.inventory.is_suspect(peer)),
            "models": [model.id for model in announcement.models] if announcement else [],
            "addresses": list(announcement.addresses) if announcement else [],
        }


def _state(connected: bool, suspect: bool) -> str:
    """A node that hangs is connected still, and suspect."""
    if suspect:
        return "suspect"
    return "connected" if connected else "known"
