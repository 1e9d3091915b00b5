"""Snapshots of the inventory."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio

from p2p_mesh.core.inventory import MAX_MEMBERS, Announced, AskSnapshot, announce, lifetime
from p2p_mesh.core.invite import Envelope, Member
from p2p_mesh.core.records import Announcement, Resources
from p2p_mesh.core.signature import sign
from p2p_mesh.core.wire import End, ErrorMessage, decode, encode
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net import inventory
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, opened, until
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


def envelope_of(node: Node, **changed: Any) -> bytes:
    about = Announcement(
        sequence=(1, 1),
        issued_at=node.now(),
        lifetime=60,
        name="test",
        version="0",
        resources=Resources(memory_total=1, memory_free=1, threads=1),
    )
    about = msgspec.structs.replace(about, **changed)
    return announce(about, node.identity.key, node.credential)


def signed_by_another(node: Node, mesh: Mesh) -> bytes:
    envelope: Envelope = decode(envelope_of(node), Envelope)
    forged = sign("announcement", envelope.body.payload, mesh.node().identity.key)
    return encode(msgspec.structs.replace(envelope, body=forged))


def of_another_credential(node: Node, mesh: Mesh) -> bytes:
    node.credential = mesh.node().credential
    return envelope_of(node)


def of_a_client(node: Node, mesh: Mesh) -> bytes:
    return envelope_of(mesh.node(role="client"))


def of_an_ended_membership(node: Node, mesh: Mesh) -> bytes:
    return envelope_of(mesh.node(until=int(node.now()) - 1))


BAD = {
    "signature of the announcement": (signed_by_another, "forged"),
    "credential of another": (of_another_credential, "borrowed"),
    "client announces nothing": (of_a_client, "refused"),
    "membership has ended": (of_an_ended_membership, "expired"),
    "that has lapsed": (lambda node, _: envelope_of(node, issued_at=node.now() - 500), "expired"),
    "from the future": (lambda node, _: envelope_of(node, issued_at=node.now() + 500), "future"),
    " the future": (
        lambda node, _: envelope_of(node, sequence=(int(node.now() + 500) * 1000, 1)),
        "future",
    ),
    "malformed": (lambda node, _: b"nonsense", "malformed"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_announcement_is_refused_counted_and_named(
    name: str, autojump_clock: Clock
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    make, reason = BAD[name]
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        await trio.sleep(3)
        await second.net._gossip.publish("inventory", make(second, mesh))
        await until(lambda: first.events("bad_peer"))
        (entry,) = first.events("bad_peer")
        assert name in entry.message
        assert entry.fields["reason"] == reason
        assert not first.known


async def test_forged_announcement_of_a_snapshot_is_counted_and_a_lapsed_one_is_not(
    autojump_clock: Clock,
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first, transport=wire.transport()):
        lapsed = envelope_of(first, issued_at=first.now() - 500)
        first.known = {"a": lapsed, "b": signed_by_another(first, mesh)}  # type: ignore[dict-item]
        async with opened(second, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: second.events("bad_peer"))
            assert [one.fields["reason"] for one in second.events("bad_peer")] == ["forged"]


async def test_client_follows_without_gossip(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, client = mesh.node(), mesh.node(role="client")
    async with opened(first, transport=wire.transport()):
        early = await first.announce()
        async with opened(client, transport=wire.transport(), seeds=first.seeds()):
            await until(lambda: client.known)
            assert client.known == {first.peer_id: early}
            for _ in range(3):
                late = await first.announce()
                await until(lambda late=late: client.known == {first.peer_id: late})  # type: ignore[misc]
            topics = client.net._gossip._topics.values()
            assert "inventory" not in [topic.name for topic in topics]
        await until(lambda: not first.net._snapshots._followers)


async def test_client_hears_what_its_member_hears(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second, client = mesh.node(), mesh.node(), mesh.node(role="client")
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
        opened(client, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: client.came and second.came)
        await trio.sleep(3)
        envelope = await second.announce()
        await until(lambda: client.known, seconds=2)
        assert client.known == {second.peer_id: envelope}


async def test_client_follows_another_when_its_member_dies(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    nodes = [mesh.node(), mesh.node()]
    client = mesh.node(role="client")
    machines = [wire.transport(), wire.transport()]
    async with (
        opened(nodes[0], transport=machines[0]),
        opened(nodes[1], transport=machines[1], seeds=nodes[0].seeds()),
        opened(client, transport=wire.transport(), seeds=nodes[0].seeds() + nodes[1].seeds()),
    ):
        await until(lambda: len(client.came) == 2 and nodes[1].came)
        await until(lambda: any(node.net._snapshots._followers for node in nodes))
        followed = next(place for place in (0, 1) if nodes[place].net._snapshots._followers)
        other = nodes[1 - followed]
        wire.kill(machines[followed])
        await until(lambda: other.net._snapshots._followers, seconds=5)
        envelope = await other.announce()
        await until(lambda: client.known.get(other.peer_id) == envelope)


async def test_follower_that_takes_nothing_is_let_go(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "MAX_WAITING", 4)
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: second.came)
        stream = await second.net._protocols.connect(first.peer_id, inventory.PROTOCOL)
        await stream.tell(AskSnapshot(updates=True))
        await until(lambda: first.net._snapshots._followers)
        for place in range(10):
            first.net._snapshots.spread(bytes([place]))
        assert not first.net._snapshots._followers
        heard = 0
        while isinstance(await stream.hear(Announced | End), Announced):
            heard += 1
        assert heard in (4, 5)  # one may have been on its way already


async def test_peer_follows_by_few_streams(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: second.came)
        for _ in range(inventory.MAX_FOLLOWING + 1):
            stream = await second.net._protocols.connect(first.peer_id, inventory.PROTOCOL)
            await stream.tell(AskSnapshot(updates=True))
        message = await stream.hear(Announced | End | ErrorMessage)
        assert message.code == "overloaded"


async def test_peer_takes_few_snapshots_at_a_time(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: second.came)
        await trio.sleep(1)
        first.known = {str(place): bytes(90_000) for place in range(100)}  # type: ignore[misc]
        streams = []
        for _ in range(inventory.MAX_TO_ONE + 1):
            stream = await second.net._protocols.connect(first.peer_id, inventory.PROTOCOL)
            await stream.tell(AskSnapshot())
            streams.append(stream)
        message = await streams[-1].hear(Announced | End | ErrorMessage)
        assert message.code == "overloaded"
        for stream in streams[:-1]:
            while isinstance(message := await stream.hear(Announced | End), Announced):
                pass
        assert not first.net._snapshots._sending


class Full:
    """A stream of which many frames are here already."""

    peer = "peer"

    async def hear(self, kind: Any) -> Any:
        return Announced(envelope=b"x")


async def test_snapshot_that_is_here_lets_others_run(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    node, stream = mesh.node(), Full()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with opened(node, transport=wire.transport()), trio.open_nursery() as nursery:
        nursery.start_soon(count)
        for _ in range(20):
            await node.net._snapshots._take_one(stream)  # type: ignore[arg-type]
        assert turns > 10
        nursery.cancel_scope.cancel()


async def test_plenty_of_announcements_are_enough_for_now(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "PLENTY", 1)
    wire, mesh = MemoryNetwork(), Mesh()
    first, second, third = mesh.node(), mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport()),
        opened(third, transport=wire.transport()),
    ):
        known = await first.announce()
        second.known = {second.peer_id: envelope_of(second)}
        await third.net.connect(first.peer_id, first.net.addresses())
        await until(lambda: third.known)
        await third.net.connect(second.peer_id, second.net.addresses())
        await trio.sleep(2)
        assert third.known == {first.peer_id: known}
        await trio.sleep(inventory.RECENT)
        await third.net._snapshots.catch_up(second.peer_id)
        assert second.peer_id in third.known


async def test_client_leaves_a_member_that_tells_nothing(autojump_clock: Clock) -> None:
    asked = 0

    async def silent(stream: Stream, member: Member) -> None:
        nonlocal asked
        asked += 1
        await trio.sleep(3600)

    wire, mesh = MemoryNetwork(), Mesh()
    first, client = mesh.node(), mesh.node(role="client")
    async with opened(first, transport=wire.transport()):
        first.net._protocols.serve(inventory.PROTOCOL, silent)
        async with opened(client, transport=wire.transport(), seeds=first.seeds()):
            await trio.sleep(10 * lifetime(1))
            assert 8 <= asked <= 11
