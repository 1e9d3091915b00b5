"""Plugins hear what happens, and nothing waits for them."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock

from p2p_mesh.core.invite import found, join, make_invite, read_token
from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import RemoteError
from p2p_mesh.hookspecs import Event, Topic, hookimpl
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import extensions as module
from p2p_mesh.node.extensions import Extensions, Voice
from p2p_mesh.plugins import Plugins

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
KEY = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
ALICE = peer_id(public_bytes(KEY))
VOICE = Voice(KEY, found(MESH_KEY, public_bytes(KEY)), public_bytes(MESH_KEY), lambda: 0.0)
RELAY = PeerId("whoever passed it on")


def plugins(**hooks: Any) -> Plugins:
    found = Plugins()
    marked = {name: hookimpl(function) for name, function in hooks.items()}
    found.add("test", lambda: SimpleNamespace(meshnode_api=1, **marked))
    found.ask()
    return found


class Network:
    """Remembers what was published, and delivers what a test says."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []
        self.receivers: dict[str, Callable[[PeerId, bytes], bool]] = {}

    async def subscribe(self, topic: str, receive: Any, max_bytes: int) -> None:
        self.receivers[topic] = receive

    async def publish(self, topic: str, data: bytes) -> None:
        self.published.append((topic, data))


async def test_events_are_told_without_their_secrets(autojump_clock: MockClock) -> None:
    heard: list[Event] = []
    journal = Journal()
    extensions = Extensions(plugins(meshnode_event=lambda event: heard.append(event)), journal)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extensions.tell)
        journal.info("ready", "it is ready", invite="secret", models=["m"])
        journal.info("api_key", "made", api_key="secret")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert heard == [Event("ready", {"models": ["m"]}), Event("api_key", {})]


async def test_events_that_find_no_room_are_dropped(autojump_clock: MockClock) -> None:
    journal = Journal()
    heard: list[str] = []
    extensions = Extensions(plugins(meshnode_event=lambda event: heard.append(event.name)), journal)
    for _ in range(module.EVENTS + 10):
        journal.info("x", "again")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(extensions.tell)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(heard) == module.EVENTS


async def test_topics_are_read_and_written(autojump_clock: MockClock) -> None:
    got: list[tuple[str, bytes]] = []
    publishers: list[Callable[[bytes], Awaitable[None]]] = []

    async def receive(author: PeerId, data: bytes) -> None:
        if data == b"bad":
            raise ValueError("a plugin's defect")
        got.append((author, data))

    topic = Topic("chat", receive, publishers.append)
    said: list[Entry] = []
    network: Any = Network()
    extensions = Extensions(plugins(meshnode_topics=lambda: [topic]), Journal(said.append))
    async with trio.open_nursery() as nursery:
        await extensions.open_topics(network, VOICE, nursery)
        await publishers[0](b"hello")
        deliver = network.receivers["plugin/chat"]
        assert deliver(RELAY, VOICE.seal("plugin/chat", b"bad"))
        assert deliver(RELAY, VOICE.seal("plugin/chat", b"good"))
        for forged in (b"good", VOICE.seal("plugin/other", b"good")):
            with pytest.raises(RemoteError):
                deliver(RELAY, forged)
    ((name, envelope),) = network.published
    assert (name, VOICE.unseal("plugin/chat", envelope)) == ("plugin/chat", (ALICE, b"hello"))
    assert got == [(ALICE, b"good")]
    assert [entry.event for entry in said] == ["plugin_failed"]


async def test_slow_plugin_holds_a_bounded_number_of_messages(autojump_clock: MockClock) -> None:
    started = 0

    async def receive(author: PeerId, data: bytes) -> None:
        nonlocal started
        started += 1
        await trio.sleep_forever()

    topic = Topic("chat", receive, lambda publish: None)
    network: Any = Network()
    extensions = Extensions(plugins(meshnode_topics=lambda: [topic]), Journal())
    async with trio.open_nursery() as nursery:
        await extensions.open_topics(network, VOICE, nursery)
        for _ in range(module.MESSAGES + 10):
            network.receivers["plugin/chat"](RELAY, VOICE.seal("plugin/chat", b"x"))
        await trio.sleep(1)
        assert started == module.MESSAGES
    assert trio.current_time() >= module.SECONDS  # and it is cut off


def test_client_publishes_nothing() -> None:
    ticket = read_token(make_invite(MESH_KEY, b"i" * 32, name="x", role="client"))
    client = Voice(KEY, join(ticket, public_bytes(KEY)), VOICE.mesh_key, VOICE.clock)
    with pytest.raises(RemoteError, match="client publishes nothing"):
        VOICE.unseal("plugin/chat", client.seal("plugin/chat", b"x"))


async def test_broken_topic_costs_the_plugin_its_topic(autojump_clock: MockClock) -> None:
    said: list[Entry] = []
    broken = Topic("broken", nobody, attach=lambda publish: 1 / 0)  # type: ignore[arg-type]
    good = Topic("good", nobody, attach=lambda publish: None)
    network: Any = Network()
    extensions = Extensions(plugins(meshnode_topics=lambda: [broken, good]), Journal(said.append))
    async with trio.open_nursery() as nursery:
        await extensions.open_topics(network, VOICE, nursery)
    assert "plugin/good" in network.receivers
    assert [entry.event for entry in said] == ["plugin_failed"]


async def nobody(author: PeerId, data: bytes) -> None: ...
