"""What a node says of itself to the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import trio
import trio.testing
from trio.testing import MockClock

from p2p_mesh.core.inventory import read
from p2p_mesh.core.records import Announcement
from p2p_mesh.node.announcements import announce_all, backends
from tests.node.test_members import MESH, NOW, Case, announcer
from tests.node.test_node import node

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network


class Wire:
    """A network that keeps what is published."""

    def __init__(self) -> None:
        self.published: list[bytes] = []

    async def publish(self, topic: str, message: bytes) -> None:
        assert topic == "inventory"
        self.published.append(message)

    def addresses(self) -> tuple[str, ...]:
        return ("/ip4/192.0.2.1/tcp/4001",)

    def said(self) -> list[Announcement]:
        return [read(one, MESH, NOW).announcement for one in self.published]


async def test_every_change_is_announced(tmp_path: Path, autojump_clock: MockClock) -> None:
    mine, wire = node(tmp_path), Wire()
    mine.members, mine.clock = Case().members, lambda: NOW
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announce_all, mine, announcer(), cast("Network", wire))
        await trio.testing.wait_all_tasks_blocked()
        first = wire.said()
        assert len(first) == 1
        assert first[0].models == ()
        assert [one.id for one in first[0].held] == ["m"]
        assert first[0].addresses == wire.addresses()
        assert mine.members.snapshot() == wire.published

        nursery.start_soon(mine.hosted["m"].run)
        await trio.sleep(5)
        assert [one.id for one in wire.said()[-1].models] == ["m"]
        nursery.cancel_scope.cancel()


def test_node_that_serves_nothing_offers_no_backend(tmp_path: Path) -> None:
    assert backends(node(tmp_path)) == ["echo"]
    assert backends(node(tmp_path, client=True)) == []
