"""Plugins hear what happens, and nothing waits for them."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from p2p_mesh.core.names import PeerId
from p2p_mesh.hookspecs import Event, Topic, hookimpl
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import extensions as module
from p2p_mesh.node.extensions import Extensions
from p2p_mesh.plugins import Plugins

ALICE = PeerId("alice")


def plugins(**hooks: Any) -> Plugins:
    found = Plugins()
    marked = {name: hookimpl(function) for name, function in hooks.items()}
    found.add("test", lambda: SimpleNamespace(meshnode_api=1, **marked))
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
        await extensions.open_topics(network, nursery)
        await publishers[0](b"hello")
        deliver = network.receivers["plugin/chat"]
        assert deliver(ALICE, b"bad")
        assert deliver(ALICE, b"good")
    assert network.published == [("plugin/chat", b"hello")]
    assert got == [("alice", b"good")]
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
        await extensions.open_topics(network, nursery)
        for _ in range(module.MESSAGES + 10):
            network.receivers["plugin/chat"](ALICE, b"x")
        await trio.sleep(1)
        assert started == module.MESSAGES
    assert trio.current_time() >= module.SECONDS  # and it is cut off
