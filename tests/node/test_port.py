"""What a backend sees of the mesh."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.records import Announcement, Resources
from p2p_mesh.errors import Unavailable
from p2p_mesh.node.port import Port
from p2p_mesh.serve.backend import Mesh, Stream
from p2p_mesh.serve.opening import Memory

RESOURCES = Resources(memory_total=10, memory_free=10, threads=1)
ANNOUNCEMENT = Announcement(
    sequence=(1, 1), issued_at=0, lifetime=60, name="x", version="1", resources=RESOURCES
)
HOSTED: Any = SimpleNamespace(
    digest="d" * 64, load=SimpleNamespace(model=SimpleNamespace(path="/m.gguf"))
)


class Network:
    peer_id = PeerId("me")

    def __init__(self) -> None:
        self.served: list[str] = []

    def serve_protocol(self, protocol: str, attend: Any) -> None:
        self.served.append(protocol)

    @asynccontextmanager
    async def _opened(self, text: str) -> AsyncIterator[str]:
        yield text

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[str]:
        return self._opened(f"{protocol} to {peer}")


def port(network: Any = None) -> Port:
    inventory = Inventory()
    for peer in ("me", "other"):
        inventory.apply(Offer(PeerId(peer), ANNOUNCEMENT, b"", 60.0))
    return Port(inventory, Memory(RESOURCES), lambda: [HOSTED], lambda: network)


def test_peers_are_the_others() -> None:
    assert [peer for peer, _ in port(Network()).peers()] == ["other"]
    assert len(port().peers()) == 2


async def test_streams_need_the_network() -> None:
    with pytest.raises(Unavailable, match="not connected yet"):
        port().open_stream(PeerId("other"), "stage")
    async with port(Network()).open_stream(PeerId("other"), "stage") as stream:
        assert str(stream) == "stage to other"


def test_protocols_wait_for_the_network() -> None:
    async def answer(stream: Stream, peer: PeerId) -> None: ...

    network: Any = Network()
    early = port()
    early.serve("plugin/early", answer)
    assert network.served == []
    early.attach(network)
    late = port(network)
    late.serve("plugin/late", answer)
    assert network.served == ["plugin/early", "plugin/late"]


async def test_leases_are_this_nodes_memory() -> None:
    mesh: Mesh = port()
    async with mesh.lease(8):
        with pytest.raises(Unavailable):
            async with mesh.lease(8):
                pass


async def test_files_are_known_by_their_digest() -> None:
    assert await port().fetch(Digest("d" * 64)) == Path("/m.gguf")
    with pytest.raises(Unavailable, match="no node that this one knows"):
        await port().fetch(Digest("e" * 64))
