"""How long a node that starts waits for the mesh that it belongs to, before it says `ready`."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.names import PeerId
from p2p_mesh.journal import Journal
from p2p_mesh.state import Belonging

JOIN_PATIENCE = 10.0
"""Seconds that `ready` waits for the mesh of an invite; after that the node goes on trying."""

SNAPSHOT_PATIENCE = 1.0
"""Seconds that it waits, once connected, for the first announcement of another."""


class Arrival:
    def __init__(self, inventory: Inventory, journal: Journal) -> None:
        self._inventory = inventory
        self._journal = journal
        self._news = trio.Event()

    def hear(self) -> None:
        """A peer came, or announced something new."""
        self._news.set()
        self._news = trio.Event()

    async def wait(
        self, belonging: Belonging, connected: Mapping[PeerId, object], me: PeerId
    ) -> None:
        """Returns when the mesh was reached and has said what it offers, or patience is over."""
        self._journal.info("joining", f"Looking for the mesh {belonging.name}")
        with trio.move_on_after(JOIN_PATIENCE):
            while not connected:
                await self._news.wait()
            with trio.move_on_after(SNAPSHOT_PATIENCE):
                while not any(offer.peer != me for offer in self._inventory.offers()):
                    await self._news.wait()
        if not connected:
            seeds = [seed.partition("/p2p/")[0] for seed in belonging.seeds]
            self._journal.warning(
                "mesh_unreached",
                f"Nobody of the mesh {belonging.name} answers at {', '.join(seeds)}: is that "
                "node running, and its port open to this machine? This node goes on trying",
                addresses=seeds,
            )
