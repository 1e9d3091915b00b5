"""Two nodes on real sockets, and peers that keep to no rule: both nodes go on serving."""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from p2p_mesh.core.names import mesh_id
from p2p_mesh.core.wire import varint
from p2p_mesh.errors import SettingsError, Unavailable
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.protocols import protocol_id
from p2p_mesh.testing.members import Mesh, Node, opened, request, text_of, until
from p2p_mesh.testing.strangers import Stranger, stranger

PROTOCOLS = [
    protocol_id("admission"),
    protocol_id("inventory"),
    protocol_id("inference"),
    PROTOCOL_ID_V11,
    PROTOCOL_ID_V12,
]
GARBAGE = [
    b"",
    b"\x00",
    b"\xff" * 12,
    varint(1 << 30) + b"x",
    varint(3) + b"\xc1\xc1\xc1",
    varint(5) + b"\x81\xa4ty",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    Random(1).randbytes(5000),
]


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Mesh, Node, Node]]:
    mesh = Mesh()
    first, second = mesh.node(), mesh.node()
    async with opened(first), opened(second, seeds=first.seeds()):
        await until(lambda: first.came and second.came)
        yield mesh, first, second
        await check_serving(first, second)


async def check_serving(first: Node, second: Node) -> None:
    with trio.fail_after(5):
        assert await text_of(first, second.peer_id) == "hello"
        assert await text_of(second, first.peer_id) == "hello"
    assert second.peer_id not in [peer for peer, _ in first.gone]
    assert first.peer_id not in [peer for peer, _ in second.gone]


def port_of(node: Node) -> int:
    return int(node.net.addresses()[0].rsplit("/", 1)[1])


async def test_garbage_and_http_are_dropped() -> None:
    async with two() as (_, first, second):
        for data in [*GARBAGE, *(secrets.token_bytes(200) for _ in range(20))]:
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(first))
            await stream.send_all(data or b"\n")
            await check_serving(first, second)
            await stream.aclose()


async def test_half_open_sockets_keep_nobody_out() -> None:
    async with two() as (mesh, first, _), AsyncExitStack() as stack:
        for _ in range(100):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(first))
            stack.push_async_callback(stream.aclose)
        third = mesh.node()
        async with opened(third, seeds=first.seeds()):
            with trio.fail_after(2):
                assert await text_of(third, first.peer_id) == "hello"


async def test_plaintext_dialer_is_nobody() -> None:
    async with two() as (_, first, second):
        victim = second.identity.key_pair()
        thief = new_host(
            key_pair=victim, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(victim)}
        )
        async with thief.run([]):
            with pytest.raises(Exception, match="security"), trio.fail_after(10):
                await thief.get_network()._dial_addr_single_attempt(
                    Multiaddr(first.net.addresses()[0]), ID.from_base58(first.peer_id)
                )
            await thief.close()


async def test_malformed_frames_of_a_stranger() -> None:
    async with two() as (_, first, _), stranger() as intruder:
        await intruder.dial(first)
        async with trio.open_nursery() as nursery:
            for protocol in PROTOCOLS:
                for data in GARBAGE:
                    nursery.start_soon(intruder.send, first, protocol, data)
                    await trio.sleep(0.01)


async def test_malformed_frames_of_a_member() -> None:
    async with two() as (mesh, first, _):
        key = Identity(secrets.token_bytes(32))
        async with stranger(keys=key.key_pair()) as intruder:
            await intruder.dial(first)
            await intruder.handshake(first, mesh.credential(key), key.key)
            await until(lambda: key.peer_id in first.net.members())
            async with trio.open_nursery() as nursery:
                for protocol in PROTOCOLS:
                    for data in GARBAGE:
                        nursery.start_soon(intruder.send, first, protocol, data)
                        await trio.sleep(0.01)
        await until(lambda: first.gone)
        first.gone.clear()


async def test_stranger_hears_no_topic_and_no_announcement() -> None:
    async with two() as (mesh, first, second), stranger() as intruder:
        topic = f"/meshnode/{mesh_id(mesh.public)}/inventory"
        router = GossipSub(protocols=[PROTOCOL_ID_V11], degree=6, degree_low=4, degree_high=8)
        pubsub = Pubsub(intruder.host, router)
        async with background_trio_service(pubsub), background_trio_service(router):
            await pubsub.wait_until_ready()
            for guess in (topic, "inventory", "/meshnode/inventory"):
                await pubsub.subscribe(guess)
            await intruder.dial(first)
            await send_rpcs(intruder, first, topic)
            envelope = await first.announce()
            await until(lambda: first.peer_id in second.known)
            await pubsub.publish(topic, envelope)
            await trio.sleep(2)
    heard = bytes(intruder.heard)
    assert b"/meshsub/1.1.0" in heard  # it did listen: identify lists the protocols
    assert mesh_id(mesh.public).encode() not in heard
    assert b'inventory"' not in heard
    assert topic.encode() not in heard
    assert envelope[:64] not in heard
    assert first.identity.public_key in heard  # of identify, and of Noise
    assert mesh.public not in heard


async def send_rpcs(intruder: Stranger, node: Node, topic: str) -> None:
    rpc = rpc_pb2.RPC()
    rpc.subscriptions.extend([rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)])
    rpc.control.graft.extend([rpc_pb2.ControlGraft(topicID=topic)])
    frame = encode_varint_prefixed(rpc.SerializeToString())
    for protocol in (PROTOCOL_ID_V11, PROTOCOL_ID_V12):
        assert await intruder.send(node, protocol, frame) == b""


async def test_unadmitted_protocols_are_reset() -> None:
    async with two() as (_, first, _), stranger() as intruder:
        await intruder.dial(first)
        for protocol in PROTOCOLS[1:]:
            assert await intruder.send(first, protocol, b"\x01\x80") == b""
        assert set(first.net.members()) == {first.came[0]}


async def test_port_in_use_is_named() -> None:
    async with two() as (mesh, first, _):
        port = port_of(first)
        with pytest.raises(SettingsError, match=f"port {port} is in use.*--p2p-port"):
            async with opened(mesh.node(), listen=[f"/ip4/127.0.0.1/tcp/{port}"]):
                pass
        with pytest.raises(SettingsError, match=f"port {port} is in use"):
            async with opened(mesh.node(), listen=[f"/ip4/0.0.0.0/tcp/{port}"]):
                pass


NODE = """
import sys, trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from p2p_mesh.core.records import Delta
from p2p_mesh.testing.members import Mesh, opened

async def endless(asked):
    while True:
        yield Delta(text="x")
        await trio.sleep(0.01)

async def main():
    mesh = Mesh(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sys.argv[1])))
    async with opened(mesh.node(generate=endless), seeds=[sys.argv[2]]):
        await trio.sleep_forever()

trio.run(main)
"""


async def run(command: list[str], *, task_status: Any) -> None:
    await trio.run_process(command, check=False, task_status=task_status)


async def test_killed_process_is_seen_within_a_second() -> None:
    async with two() as (mesh, first, second), trio.open_nursery() as nursery:
        command = [sys.executable, "-c", NODE, mesh.key.private_bytes_raw().hex()]
        process = await nursery.start(run, [*command, first.seeds()[0]])
        await until(lambda: len(first.net.members()) == 2, seconds=20)
        victim = next(peer for peer in first.net.members() if peer != second.peer_id)
        async with first.net.ask(victim, request()) as deltas:
            await anext(deltas)
            process.kill()
            with trio.fail_after(1), pytest.raises(Unavailable):
                async for _ in deltas:
                    pass
        await until(lambda: first.gone, seconds=1)
