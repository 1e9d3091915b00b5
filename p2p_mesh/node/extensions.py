"""What plugins hear while the node runs: its events, and the messages of their topics.

A plugin gets what it asked for and nothing of the node waits for it: queues are bounded, what
does not fit is dropped, and a plugin that raises is skipped or reported.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from p2p_mesh.core.names import PeerId
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

_SECRET = frozenset({"invite", "api_key"})


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

    async def open_topics(self, network: Network, nursery: trio.Nursery) -> None:
        """Joins the topics of the plugins; their messages are handled in `nursery`."""
        for topic in self._plugins.topics():
            name = f"plugin/{topic.name}"
            receive = partial(self._receive_one, topic, trio.Semaphore(MESSAGES), nursery)
            await network.subscribe(name, receive, topic.max_bytes)
            topic.attach(partial(network.publish, name))

    def _receive_one(
        self, topic: Topic, room: trio.Semaphore, nursery: trio.Nursery, author: PeerId, data: bytes
    ) -> bool:
        """Always True: whether a message means anything, only the plugin could say."""
        with suppress(trio.WouldBlock):
            room.acquire_nowait()
            nursery.start_soon(self._pass_on, topic, room, author, data)
        return True

    async def _pass_on(
        self, topic: Topic, room: trio.Semaphore, author: PeerId, data: bytes
    ) -> None:
        try:
            with trio.move_on_after(SECONDS):
                await topic.receive(author, data)
        except Exception as error:  # noqa: BLE001 - a plugin's defect must not reach the node
            self._journal.warning(
                "plugin_failed", f"the plugin behind the topic {topic.name} failed: {error!r}",
                topic=topic.name,
            )  # fmt: skip
        finally:
            room.release()
