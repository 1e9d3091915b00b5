"""The narrow port through which a backend sees the mesh (serve/backend.py, Mesh)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import Announcement, ModelFile, Resources
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Journal
from p2p_mesh.net.peers import ENOUGH
from p2p_mesh.node.artifacts import Artifacts
from p2p_mesh.serve.backend import Limits, Package, Stream
from p2p_mesh.serve.opening import Memory

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

NO_LIMITS = Limits()

Serve = Callable[[Stream, PeerId], Awaitable[None]]


class Port:
    """Implements Mesh for every backend of one node."""

    def __init__(
        self,
        inventory: Inventory,
        memory: Memory,
        artifacts: Artifacts,
        *,
        network: Callable[[], Network | None],
        measured: Callable[[], Resources],
        is_planned: Callable[[ModelId], bool],
        name: str = "",
        listens: str | None = None,
        limits: Limits = NO_LIMITS,
        journal: Journal | None = None,
    ) -> None:
        """`is_planned`: whether a model is loaded because it is wanted, and nobody named it."""
        self._inventory = inventory
        self._memory = memory
        self._artifacts = artifacts
        self._network = network
        self._measured = measured
        self._is_planned = is_planned
        self._name = name
        self._listens = listens
        self._limits = limits
        self._journal = journal or Journal()
        self._served: dict[str, Serve] = {}

    def me(self) -> PeerId:
        return self._connected().peer_id

    def name(self) -> str:
        return self._name

    def listens(self) -> str | None:
        return self._listens

    def resources(self) -> Resources:
        return self._measured()

    def limits(self) -> Limits:
        return self._limits

    def say(self, event: str, text: str) -> None:
        self._journal.info(event, text)

    def round_trip(self, peer: PeerId) -> float | None:
        network = self._network()
        return None if network is None else network.rtt(peer)

    async def package(self, wanted: ModelFile | PackageRef) -> Package:
        on_demand = isinstance(wanted, ModelFile) and self._is_planned(wanted.id)
        return await self._artifacts.package(wanted, on_demand=on_demand)

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        network = self._network()
        me = network.peer_id if network else None
        return [
            (offer.peer, offer.announcement)
            for offer in self._inventory.offers()
            if offer.peer != me and not self.is_away(offer.peer)
        ]

    def is_away(self, peer: PeerId) -> bool:
        """Whether a member announced itself and does not answer now. A node is connected to all
        others of a small mesh, and to some of a large one.
        """
        if self._inventory.is_suspect(peer):
            return True
        network = self._network()
        members = network.members() if network is not None else None
        return members is not None and len(members) < ENOUGH and peer not in members

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        offer = self._inventory.get(peer)
        name = offer.announcement.name if offer is not None else ""
        return _named(self._connected().open_stream(peer, protocol), peer, name or peer)

    def _connected(self) -> Network:
        if (network := self._network()) is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        return network

    def serve(self, protocol: str, answer: Serve) -> None:
        """Kept until the network is up, since models load meanwhile."""
        self._served[protocol] = answer
        if (network := self._network()) is not None:
            self._open(network, protocol)

    def attach(self, network: Network) -> None:
        """The network is up."""
        for protocol in self._served:
            self._open(network, protocol)

    def _open(self, network: Network, protocol: str) -> None:
        async def attend(stream: Stream, member: Member) -> None:
            await self._served[protocol](stream, member.peer)

        network.serve_protocol(protocol, attend)

    def lease(self, memory_bytes: int) -> AbstractAsyncContextManager[None]:
        return self._memory.lease(memory_bytes)


@asynccontextmanager
async def _named(
    opened: AbstractAsyncContextManager[Stream], peer: PeerId, name: str
) -> AsyncIterator[Stream]:
    """A stream whose errors call the peer by its name."""
    try:
        async with opened as stream:
            yield stream
    except Unavailable as error:
        error.args = (str(error).replace(peer, name),)
        raise
