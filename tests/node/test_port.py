"""What a backend sees of the mesh."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import Announcement, ModelFile, Resources
from p2p_mesh.errors import Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net.peers import ENOUGH
from p2p_mesh.node.port import Port
from p2p_mesh.serve.backend import Limits, Mesh, Stream
from p2p_mesh.serve.opening import Memory

RESOURCES = Resources(memory_total=10, memory_free=10, threads=1)
ANNOUNCEMENT = Announcement(
    sequence=(1, 1), issued_at=0, lifetime=60, name="x", version="1", resources=RESOURCES
)
MODEL = ModelFile(
    id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=1,
    kv_bytes_per_token=1,
)  # fmt: skip


class Network:
    peer_id = PeerId("me")

    def __init__(self, *members: str) -> None:
        self.served: list[str] = []
        self.connected = dict.fromkeys(members or ("other",))

    def members(self) -> dict[str, None]:
        return self.connected

    def serve_protocol(self, protocol: str, attend: Any) -> None:
        self.served.append(protocol)

    def rtt(self, peer: PeerId) -> float | None:
        return {"other": 0.25}.get(peer)

    @asynccontextmanager
    async def _opened(self, text: str) -> AsyncIterator[str]:
        yield text

    def open_stream(self, peer: PeerId, protocol: str) -> AbstractAsyncContextManager[str]:
        return self._opened(f"{protocol} to {peer}")


class Artifacts:
    """Gives what it was asked for."""

    async def package(self, wanted: Any, *, on_demand: bool) -> Any:
        return wanted, on_demand


def port(network: Any = None, planned: str = "", **more: Any) -> Port:
    inventory = Inventory()
    for peer in ("me", "other"):
        inventory.apply(Offer(PeerId(peer), ANNOUNCEMENT, b"", 60.0))
    artifacts: Any = Artifacts()
    return Port(
        inventory,
        Memory(RESOURCES),
        artifacts,
        network=lambda: network,
        measured=lambda: RESOURCES,
        is_planned=lambda model: model == planned,
        **more,
    )


def test_peers_are_the_others() -> None:
    assert [peer for peer, _ in port(Network()).peers()] == ["other"]
    assert len(port().peers()) == 2


def test_who_does_not_answer_is_no_peer() -> None:
    here = port(Network("third"))
    assert here.peers() == []
    assert here.is_away(PeerId("other"))
    large = Network(*(f"peer {number}" for number in range(ENOUGH)))
    assert len(port(large).peers()) == 1  # nobody is connected to all of a large mesh
    suspecting = port(Network())
    suspecting._inventory.suspect(PeerId("other"))
    assert suspecting.peers() == []


async def test_errors_of_a_stream_name_the_node() -> None:
    @asynccontextmanager
    async def dead() -> AsyncIterator[Stream]:
        raise Unavailable("other does not answer")
        yield

    network: Any = Network()
    network.open_stream = lambda peer, protocol: dead()
    with pytest.raises(Unavailable, match=r"^x does not answer$"):
        async with port(network).open_stream(PeerId("other"), "stage"):
            pass


def test_node_knows_itself_once_it_is_connected() -> None:
    assert port(Network()).me() == "me"
    with pytest.raises(Unavailable, match="not connected yet"):
        port().me()


def test_round_trips_are_those_of_the_pings() -> None:
    assert port(Network()).round_trip(PeerId("other")) == 0.25
    assert port(Network()).round_trip(PeerId("stranger")) is None
    assert port().round_trip(PeerId("other")) is None


def test_resources_are_measured_now() -> None:
    assert port().resources() is RESOURCES


def test_what_a_backend_says_is_in_the_log() -> None:
    said: list[Entry] = []
    port(journal=Journal(said.append)).say("stage_held", "holding layers 3 to 6")
    assert said == [Entry("info", "stage_held", "holding layers 3 to 6")]
    port().say("stage_held", "nobody hears it")


def test_limits_are_those_of_the_user() -> None:
    assert port(limits=Limits(threads=3)).limits().threads == 3
    assert port().limits() == Limits()


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


async def test_package_of_a_model_that_nobody_named_is_fetched_on_demand() -> None:
    found: Any = await port(planned="m").package(MODEL)
    assert found == (MODEL, True)
    named: Any = await port().package(MODEL)
    assert named == (MODEL, False)
    ref = PackageRef(manifest=Digest("a" * 64))
    of_a_plan: Any = await port(planned="m").package(ref)
    assert of_a_plan == (ref, False)
