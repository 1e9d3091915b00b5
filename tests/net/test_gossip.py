"""Gossip on the memory network: between members, and against a member that breaks the rules."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed

from p2p_mesh.core.names import PeerId, mesh_id
from p2p_mesh.errors import LocalError, RemoteError
from p2p_mesh.net import gossip
from p2p_mesh.net.identity import Identity
from p2p_mesh.testing.members import Mesh, Node, enter, opened, text_of, until
from p2p_mesh.testing.network import MemoryNetwork
from p2p_mesh.testing.strangers import Stranger, stranger

Clock = trio.testing.MockClock
MESHSUB = "/meshsub/1.2.0"


@asynccontextmanager
async def pair(role: Any = "member") -> AsyncIterator[tuple[Node, Node]]:
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node(role=role)
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        await trio.sleep(2)
        yield first, second


@asynccontextmanager
async def traitor() -> AsyncIterator[tuple[Node, Stranger]]:
    """A node, and an admitted peer that writes its gossip by hand."""
    wire, mesh = MemoryNetwork(), Mesh()
    key = Identity(secrets.token_bytes(32))
    async with (
        opened(mesh.node(), transport=wire.transport()) as node,
        stranger(wire.transport(), keys=key.key_pair()) as peer,
    ):
        await peer.dial(node)
        await peer.handshake(node, mesh.credential(key), key.key)
        await until(lambda: node.came)
        yield node, peer
        assert set(node.net.members()) == {key.peer_id}
        await node.announce()


def topic_of(node: Node, name: str = "inventory") -> str:
    return f"/meshnode/{mesh_id(node.mesh_key)}/{name}"


def rpc_of(message: Any) -> bytes:
    return bytes(encode_varint_prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))


class Heard:
    """A topic's receiver."""

    def __init__(self, verdict: bool | Exception = True) -> None:
        self.items: list[tuple[PeerId, bytes]] = []
        self.verdict = verdict

    def __call__(self, author: PeerId, data: bytes) -> bool:
        self.items.append((author, data))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict


async def test_topic_reaches_its_subscribers(autojump_clock: Clock) -> None:
    async with pair() as (first, second):
        heard, own = Heard(), Heard()
        await first.net.subscribe("plugin/chat", own)
        await second.net.subscribe("plugin/chat", heard)
        await trio.sleep(2)
        await first.net.publish("plugin/chat", b"hi")
        await until(lambda: heard.items)
        assert heard.items == [(first.peer_id, b"hi")]
        assert not own.items


async def test_burst_arrives_whole(autojump_clock: Clock) -> None:
    # Defect K: unpatched, 16 of 300.
    async with pair() as (first, second):
        heard = Heard()
        await first.net.subscribe("plugin/chat", Heard())
        await second.net.subscribe("plugin/chat", heard)
        await trio.sleep(2)
        for place in range(150):
            await first.net.publish("plugin/chat", str(place).encode())
        await trio.sleep(5)
        assert len(heard.items) == 150


async def test_restarted_node_is_heard_at_once(autojump_clock: Clock) -> None:
    # Defect K: unpatched, the first messages after a restart carry numbers that are known.
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    machine = wire.transport()
    async with opened(second, transport=wire.transport()):
        for _ in range(3):
            async with opened(first, transport=machine, seeds=second.seeds()):
                await until(lambda: first.net.members())
                await trio.sleep(2)
                second.known.clear()
                await first.announce()
                await until(lambda: second.known)
            await until(lambda: not second.net.members())
            first.came.clear()


async def test_client_publishes_no_inventory(autojump_clock: Clock) -> None:
    async with pair(role="client") as (first, client):
        with pytest.raises(LocalError, match="nobody here listens"):
            await client.announce()
        await first.announce()
        await until(lambda: first.peer_id in client.known)


async def test_what_is_too_large_is_refused_here(autojump_clock: Clock) -> None:
    async with pair() as (first, _):
        await first.net.subscribe("plugin/chat", Heard(), 100)
        with pytest.raises(LocalError, match="takes 100"):
            await first.net.publish("plugin/chat", bytes(101))
        with pytest.raises(LocalError, match="nobody here listens"):
            await first.net.publish("plugin/other", b"")
        with pytest.raises(LocalError, match="at most"):
            await first.net.subscribe("plugin/huge", Heard(), gossip.MAX_MESSAGE + 1)


@pytest.mark.parametrize(
    "verdict", [RemoteError("bad"), ZeroDivisionError(), ExceptionGroup("", [KeyError()])]
)
async def test_invalid_message_goes_no_further(verdict: Exception, autojump_clock: Clock) -> None:
    # Defect D: unpatched, a validator that raises ends the host.
    wire, mesh = MemoryNetwork(), Mesh()
    nodes = [mesh.node() for _ in range(3)]
    heard = [Heard(), Heard(verdict), Heard()]
    async with (
        opened(nodes[0], transport=wire.transport()),
        opened(nodes[1], transport=wire.transport(), seeds=nodes[0].seeds()),
        opened(nodes[2], transport=wire.transport(), seeds=nodes[1].seeds()),
    ):
        await until(lambda: len(nodes[1].came) == 2)
        for node, receive in zip(nodes, heard, strict=True):
            await node.net.subscribe("plugin/chat", receive)
        await trio.sleep(3)
        await nodes[0].net.publish("plugin/chat", b"hi")
        await trio.sleep(3)
        assert len(heard[1].items) == 1
        assert not heard[2].items
        is_ours = not isinstance(verdict, RemoteError)
        assert nodes[1].events("handler_failed" if is_ours else "bad_peer")
        assert await text_of(nodes[2], nodes[1].peer_id) == "hello"


async def test_what_stops_here_is_nobodys_fault(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    nodes = [mesh.node() for _ in range(3)]
    heard = [Heard(), Heard(False), Heard()]
    async with (
        opened(nodes[0], transport=wire.transport()),
        opened(nodes[1], transport=wire.transport(), seeds=nodes[0].seeds()),
        opened(nodes[2], transport=wire.transport(), seeds=nodes[1].seeds()),
    ):
        await until(lambda: len(nodes[1].came) == 2)
        for node, receive in zip(nodes, heard, strict=True):
            await node.net.subscribe("plugin/chat", receive)
        await trio.sleep(3)
        await nodes[0].net.publish("plugin/chat", b"hi")
        await trio.sleep(3)
        assert len(heard[1].items) == 1
        assert not heard[2].items
        assert not nodes[1].events("bad_peer")
        counts = nodes[1].net._gossip.router.scorer.invalid_messages.values()
        assert not any(count for topics in counts for count in topics.values())
        assert not nodes[1].net._gossip._stopped


async def test_c_malformed_rpc_ends_its_stream_only(autojump_clock: Clock) -> None:
    async with traitor() as (node, peer):
        for data in (b"\x05\xff\xff\xff\xff\xff", b"\x03\x0a\x64x", b"\xff" * 20, b"\x00" * 50):
            await peer.send(node, MESHSUB, data)
        assert node.events("bad_peer")


async def test_d_garbage_key_ends_nothing(autojump_clock: Clock) -> None:
    async with traitor() as (node, peer):
        message = rpc_pb2.Message(
            from_id=b"\x12\x20" + bytes(32),
            seqno=bytes(8),
            data=b"x",
            topicIDs=[topic_of(node)],
            signature=bytes(64),
            key=b"\xff\xff\xff",
        )
        await peer.send(node, MESHSUB, rpc_of(message))
        assert "cannot be checked" in node.events("bad_peer")[-1].message


async def test_unsigned_message_is_dropped(autojump_clock: Clock) -> None:
    async with traitor() as (node, peer):
        heard = Heard()
        await node.net.subscribe("plugin/chat", heard)
        message = rpc_pb2.Message(
            from_id=peer.host.get_id().to_bytes(),
            seqno=bytes(8),
            data=b"x",
            topicIDs=[topic_of(node, "plugin/chat")],
        )
        await peer.send(node, MESHSUB, rpc_of(message))
        assert not heard.items


async def test_unknown_topics_are_not_kept(autojump_clock: Clock) -> None:
    async with traitor() as (node, peer):
        rpc = rpc_pb2.RPC()
        for place in range(50):
            rpc.subscriptions.extend([rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"t{place}")])
        await peer.send(node, MESHSUB, encode_varint_prefixed(rpc.SerializeToString()))
        assert not [topic for topic in node.net._gossip._pubsub.peer_topics if topic[0] == "t"]


async def test_failing_heartbeat_is_survived(autojump_clock: Clock) -> None:
    async with pair() as (first, second):
        first.net._gossip.router.mcache = None
        await trio.sleep(5)
        assert first.events("gossip_failed")
        assert await text_of(first, second.peer_id) == "hello"


async def test_stranger_is_not_listened_to(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    async with (
        opened(mesh.node(), transport=wire.transport()) as node,
        stranger(wire.transport()) as guest,
    ):
        await guest.dial(node)
        rpc = rpc_pb2.RPC(
            subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic_of(node))]
        )
        await guest.send(node, MESHSUB, encode_varint_prefixed(rpc.SerializeToString()))
        assert not node.net._gossip._pubsub.peer_topics


async def test_client_takes_part_in_demand(autojump_clock: Clock) -> None:
    async with pair(role="client") as (first, client):
        here, there = Heard(), Heard()
        await first.net.subscribe("demand", here, 1000)
        await client.net.subscribe("demand", there, 1000)
        await trio.sleep(2)
        await client.net.publish("demand", b"wanted")
        await first.net.publish("demand", b"wanted too")
        await until(lambda: here.items and there.items)
        assert here.items == [(client.peer_id, b"wanted")]
        assert there.items == [(first.peer_id, b"wanted too")]


async def test_records_of_senders_are_neither_sent_nor_read(autojump_clock: Clock) -> None:
    # libp2p would sign and check one for each message.
    async with pair():
        for module in (pubsub, gossipsub):
            assert module.env_to_send_in_RPC(None) == (b"", False)
            assert module.maybe_consume_signed_record(rpc_pb2.RPC(senderRecord=b"x"), None, None)


async def test_announcement_reaches_all_within_two_seconds(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(0.05), Mesh()
    nodes = [mesh.node() for _ in range(8)]
    async with AsyncExitStack() as stack:
        for place, node in enumerate(nodes):
            seeds = nodes[place - 1].seeds() if place else ()
            await enter(stack, node, transport=wire.transport(), seeds=seeds)
        await until(lambda: all(len(node.net.members()) for node in nodes), seconds=60)
        await trio.sleep(10)
        await nodes[0].announce()
        await until(lambda: all(nodes[0].peer_id in node.known for node in nodes), seconds=2)
