"""What this node announces of itself: at every change, and as often as the mesh's size allows."""

from __future__ import annotations

from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING

from p2p_mesh.core.inventory import pause
from p2p_mesh.node.members import Announcer, announce
from p2p_mesh.node.sources import MODELS

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network
    from p2p_mesh.node.node import Node


async def announce_all(node: Node, announcer: Announcer, network: Network) -> None:
    """Until cancelled."""
    await announce(
        partial(network.publish, "inventory"),
        partial(_next, node, announcer, network),
        lambda: node.changed,
        pause=lambda: pause(len(node.inventory), SystemRandom()),
        journal=node.journal,
    )


def _next(node: Node, announcer: Announcer, network: Network) -> bytes:
    served = [found for one in node.hosted.values() if (found := one.served()) is not None]
    envelope = announcer.make(
        served, node.measured(), network.addresses(), node.clock(),
        held=node.models.held()[: max(0, MODELS - len(served))],
        backends=backends(node),
        packages=node.artifacts.library.announced(), members=len(node.inventory),
        role="client" if node.settings.client else "member",
    )  # fmt: skip
    assert node.members is not None
    node.members.keep(envelope)
    return envelope


def backends(node: Node) -> list[str]:
    """What others may count on: one that serves nothing holds no stages either."""
    return [] if node.settings.client else [one.name for one in node.plugins.backends()]
