"""What plugins hear while the node runs: its events, and the messages of their topics.

A plugin gets what it asked for and nothing of the node waits for it: queues are bounded, what
does not fit is dropped, and a plugin that raises is skipped or reported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.admission import may_publish
from p2p_mesh.core.invite import Credential, seal, unseal
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.revocation import NOTHING, Revoked
from p2p_mesh.errors import Refused
from p2p_mesh.hookspecs import Event, Topic
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.plugins import Plugins

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

EVENTS = 256
"""Events that may wait for the plugins."""

MESSAGES = 64
"""Messages of one topic that a plugin may have in hand."""

SECONDS = 30.0
"""How long a plugin may take over one message."""

ENVELOPE = 2_048
"""Bytes that a payload's envelope adds at most."""

_SECRET = frozenset({"invite", "api_key"})


@dataclass(frozen=True, slots=True)
class Voice:
    """This node's own voice among the members, and its ear for theirs."""

    key: Ed25519PrivateKey
    credential: Credential
    mesh_key: bytes
    clock: Callable[[], float]
    revoked: Callable[[], Revoked] = lambda: NOTHING

    def seal(self, kind: str, payload: bytes) -> bytes:
        return seal(kind, payload, self.key, self.credential)

    def unseal(self, kind: str, envelope: bytes) -> tuple[PeerId, bytes]:
        """Who says it, and what. Raises RemoteError, also where a role may not publish this."""
        author, payload = unseal(kind, envelope, self.mesh_key, self.clock(), self.revoked())
        if not may_publish(author.role, kind):
            raise Refused(f"a {author.role} publishes nothing to {kind}")
        return author.peer, payload


class Extensions:
    """The running side of the plugins of one node."""

    def __init__(self, plugins: Plugins, journal: Journal) -> None:
        self._plugins = plugins
        self._journal = journal
        self._send, self._receive = trio.open_memory_channel[Entry](EVENTS)
        journal.listen(self._hear)

    def _hear(self, entry: Entry) -> None:
        with suppress(trio.WouldBlock, trio.BrokenResourceError):
            self._send.send_nowait(entry)

    async def tell(self) -> None:
        """Passes the journal on to the plugins until cancelled, secrets left out."""
        async with self._receive:
            async for entry in self._receive:
                fields = {key: value for key, value in entry.fields.items() if key not in _SECRET}
                await self._plugins.tell(Event(entry.event, fields))

    async def open_topics(self, network: Network, voice: Voice, nursery: trio.Nursery) -> None:
        """Joins the topics of the plugins; their messages are handled in `nursery`."""
        for topic in self._plugins.topics():
            try:
                await self._open_topic(topic, network, voice, nursery)
            except Exception as error:  # noqa: BLE001 - a plugin's defect costs it its topic
                self._report(topic, error)

    async def _open_topic(
        self, topic: Topic, network: Network, voice: Voice, nursery: trio.Nursery
    ) -> None:
        name, room = f"plugin/{topic.name}", trio.Semaphore(MESSAGES)

        async def publish(payload: bytes) -> None:
            await network.publish(name, voice.seal(name, payload))

        def receive(_: PeerId, envelope: bytes) -> bool:
            author, payload = voice.unseal(name, envelope)
            with suppress(trio.WouldBlock):
                room.acquire_nowait()
                nursery.start_soon(self._pass_on, topic, room, author, payload)
            return True  # whether the payload means anything, only the plugin could say

        await network.subscribe(name, receive, topic.max_bytes + ENVELOPE)
        topic.attach(publish)

    async def _pass_on(
        self, topic: Topic, room: trio.Semaphore, author: PeerId, data: bytes
    ) -> None:
        try:
            with trio.move_on_after(SECONDS):
                await topic.receive(author, data)
        except Exception as error:  # noqa: BLE001 - a plugin's defect must not reach the node
            self._report(topic, error)
        finally:
            room.release()

    def _report(self, topic: Topic, error: Exception) -> None:
        self._journal.warning(
            "plugin_failed", f"the plugin behind the topic {topic.name} failed: {error!r}",
            topic=topic.name,
        )  # fmt: skip
