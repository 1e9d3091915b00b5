"""Snapshots of the inventory."""

from __future__ import annotations

import pytest
import trio

from p2p_mesh.core.inventory import MAX_MEMBERS, Announced
from p2p_mesh.core.invite import Member
from p2p_mesh.core.wire import End
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net import inventory
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, opened, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock


async def test_bad_envelope_spoils_no_other(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        good = await first.announce()
        first.known = {"a": b"nonsense", "b": good}  # type: ignore[dict-item]
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.known)
            assert second.known == {first.peer_id: good}


async def test_large_snapshot_arrives(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        first.known = {str(place): bytes(1000) for place in range(500)}  # type: ignore[misc]
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.came)
            assert await second.net._snapshots.fetch(first.peer_id) == 500


async def test_endless_snapshot_is_refused(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "MAX_MEMBERS", 10)

    async def endless(stream: Stream, member: Member) -> None:
        while True:
            await stream.tell(Announced(envelope=b""))
            await trio.sleep(0.01)

    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        first.net._protocols.serve(inventory.PROTOCOL, endless)
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.came)
            with pytest.raises(RemoteError, match="more than"):
                await second.net._snapshots.fetch(first.peer_id)
    assert MAX_MEMBERS == 10_000


async def test_silent_snapshot_is_given_up(autojump_clock: Clock) -> None:
    async def silent(stream: Stream, member: Member) -> None:
        await trio.sleep(3600)
        await stream.tell(End())

    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        first.net._protocols.serve(inventory.PROTOCOL, silent)
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.came)
            with pytest.raises(Unavailable, match="too long"):
                await second.net._snapshots.fetch(first.peer_id)
