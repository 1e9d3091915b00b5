"""The narrow port through which a backend sees the mesh (serve/backend.py, Mesh)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.records import Announcement
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Stream
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.supervisor import Hosted

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

Serve = Callable[[Stream, PeerId], Awaitable[None]]


class Port:
    """Implements Mesh for every backend of one node."""

    def __init__(
        self,
        inventory: Inventory,
        memory: Memory,
        hosted: Callable[[], Iterable[Hosted]],
        network: Callable[[], Network | None],
    ) -> None:
        self._inventory = inventory
        self._memory = memory
        self._hosted = hosted
        self._network = network
        self._served: dict[str, Serve] = {}

    def peers(self) -> Sequence[tuple[PeerId, Announcement]]:
        network = self._network()
        me = network.peer_id if network else None
        return [
            (offer.peer, offer.announcement)
            for offer in self._inventory.offers()
            if offer.peer != me
        ]

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[Stream]:
        network = self._network()
        if network is None:
            raise Unavailable("this node is not connected yet", retry_after=1.0)
        return network.open_stream(peer, protocol)

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

    async def fetch(self, digest: Digest) -> Path:
        for hosted in self._hosted():
            if hosted.load is not None and hosted.digest == digest:
                return Path(hosted.load.model.path)
        raise Unavailable(f"no node that this one knows has a file with the digest {digest}")
