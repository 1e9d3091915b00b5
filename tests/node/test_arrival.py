"""How long a node waits for its mesh before it is ready."""

from __future__ import annotations

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock

from p2p_mesh.core.inventory import Inventory, read
from p2p_mesh.core.invite import found
from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.core.records import Resources
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.arrival import JOIN_PATIENCE, SNAPSHOT_PATIENCE, Arrival
from p2p_mesh.node.members import Announcer
from p2p_mesh.state import Belonging

KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
CREDENTIAL = found(MESH_KEY, public_bytes(KEY))
OTHER = peer_id(public_bytes(KEY))
ME = PeerId("me")
BELONGING = Belonging(
    mesh=public_bytes(MESH_KEY), name="home", credential=CREDENTIAL,
    seeds=("/ip4/192.0.2.1/tcp/4001/p2p/x",),
)  # fmt: skip


class Case:
    def __init__(self) -> None:
        self.said: list[Entry] = []
        self.inventory = Inventory()
        self.connected: dict[PeerId, object] = {}
        self.arrival = Arrival(self.inventory, Journal(self.said.append))

    async def wait(self) -> float:
        """Seconds that it took."""
        began = trio.current_time()
        await self.arrival.wait(BELONGING, self.connected, ME)
        return trio.current_time() - began

    async def come(self, after: float, *, announces: bool) -> None:
        await trio.sleep(after)
        self.connected[OTHER] = object()
        self.arrival.hear()
        if announces:
            resources = Resources(memory_total=2, memory_free=1, threads=1)
            announcer = Announcer(KEY, CREDENTIAL, name="bob", boot=1.0)
            envelope = announcer.make([], resources, (), 1000.0)
            self.inventory.apply(read(envelope, BELONGING.mesh, 1000.0))
            self.arrival.hear()


@pytest.mark.parametrize(("announces", "more"), [(True, 0.0), (False, SNAPSHOT_PATIENCE)])
async def test_mesh_that_is_reached_has_a_moment_to_say_what_it_offers(
    announces: bool, more: float, autojump_clock: MockClock
) -> None:
    case = Case()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: case.come(3.0, announces=announces))
        assert await case.wait() == pytest.approx(3.0 + more)
    assert [one.event for one in case.said] == ["joining"]


async def test_mesh_that_nobody_answers_for_is_said(autojump_clock: MockClock) -> None:
    case = Case()
    assert await case.wait() == pytest.approx(JOIN_PATIENCE)
    assert [one.event for one in case.said] == ["joining", "mesh_unreached"]
    assert "Nobody of the mesh home answers at /ip4/192.0.2.1/tcp/4001:" in case.said[1].message
    assert msgspec.json.encode(case.said[1].fields)
