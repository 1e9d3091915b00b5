"""Gossip among admitted members: who is told what, and what is taken from whom.

py-libp2p's Pubsub greets every connection with its topics, and its first malformed message
ends the host (defects C and D). So here it neither opens nor accepts a stream before its peer
is admitted, knows only topics that were subscribed to, and every message is judged, and taken,
by the topic's own callable before anything else is done with it.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import trio
from libp2p.peer.id import ID
from libp2p.pubsub import gossipsub, pubsub
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.pubsub_notifee import PubsubNotifee
from libp2p.tools.anyio_service import background_trio_service

from p2p_mesh.core.admission import may_publish
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import MeshId, PeerId
from p2p_mesh.errors import LocalError, RemoteError
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net.host import Host, name_of
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import Gate

MAX_MESSAGE = 256 << 10
"""Bytes of one message. libp2p drops, silently, what does not fit into an RPC of 1 MiB."""

MAX_STREAMS = 4
"""Gossip streams that one peer may open to us at a time; it needs one."""

Receive = Callable[[PeerId, bytes], bool]
"""Takes what an author published; True if it may be passed on, False if it stops here, which is no
fault of whoever passed it on. Raises RemoteError for what is.
"""

Members = Mapping[PeerId, Member]


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    receive: Receive
    max_bytes: int


class Gossip:
    """The topics of one mesh."""

    def __init__(
        self,
        host: Host,
        mesh: MeshId,
        us: Member,
        *,
        members: Members,
        gate: Gate,
        offences: Offences,
        journal: Journal,
    ) -> None:
        self._prefix = f"/meshnode/{mesh}/"
        self._us = us
        self._members = members
        self._gate = gate
        self._offences = offences
        self._journal = journal
        self._topics: dict[str, Topic] = {}
        self._streams: dict[PeerId, int] = {}
        self._stopped: set[bytes] = set()
        """Of the messages that are being judged, those that are not passed on."""
        _send_no_records()
        self.router = _Router(self)
        self._pubsub = _Pubsub(self, host)
        _unhook(host)
        for protocol in self.router.get_protocols():
            host.handle(protocol, self._accept)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        with bare():
            async with background_trio_service(self._pubsub), background_trio_service(self.router):
                await self._pubsub.wait_until_ready()
                yield

    async def subscribe(self, name: str, receive: Receive, max_bytes: int = MAX_MESSAGE) -> None:
        """From now on, what is published to a topic is handed to `receive`."""
        if max_bytes > MAX_MESSAGE:
            raise LocalError(f"a topic takes at most {MAX_MESSAGE} bytes in a message")
        topic = self._prefix + name
        self._topics[topic] = Topic(name, receive, max_bytes)
        self._pubsub.set_topic_validator(topic, self.judge, is_async_validator=False)
        await self._pubsub.subscribe(topic)

    async def publish(self, name: str, data: bytes) -> None:
        """Tells every member. Raises LocalError for what nobody would take."""
        topic = self._topics.get(self._prefix + name)
        if topic is None:
            raise LocalError(f"nobody here listens to the topic {name}")
        if len(data) > topic.max_bytes:
            raise LocalError(f"{len(data)} bytes; the topic {name} takes {topic.max_bytes}")
        if not may_publish(self._us.role, name):
            raise LocalError(f"a {self._us.role} publishes nothing to {name}")
        await self._pubsub.publish(self._prefix + name, data)

    async def link(self, peer: PeerId) -> None:
        """Opens the gossip stream to a peer that was just admitted."""
        await self._pubsub.ensure_peer_stream(ID.from_base58(peer), timeout=30.0)

    def unlink(self, peer: PeerId) -> None:
        self._pubsub._handle_dead_peer(ID.from_base58(peer))

    def is_admitted(self, peer: Any) -> bool:
        name = PeerId(str(peer))
        return name in self._members or name == self._us.peer

    def has_topic(self, topic: str) -> bool:
        return topic in self._topics

    def fail(self, error: Exception) -> None:
        self._journal.debug("gossip_failed", f"gossip went on after {error!r}")

    def note(self, peer: Any, what: str) -> None:
        self._offences.note(PeerId(str(peer)), f"gossip: {what}")

    def judge(self, forwarder: Any, message: Any) -> bool:
        """Whether a message, whose signature was checked, is valid; takes it if so."""
        if len(message.topicIDs) != 1 or (topic := self._topics.get(message.topicIDs[0])) is None:
            self.note(forwarder, "a message for a topic that is none")
            return False
        author = PeerId(str(ID(message.from_id)))
        if author == self._us.peer:
            return PeerId(str(forwarder)) == author
        member = self._members.get(author)
        # Only neighbours' roles are known here; what others publish proves its own author.
        if len(message.data) > topic.max_bytes or (
            member is not None and not may_publish(member.role, topic.name)
        ):
            self.note(forwarder, f"a message that {topic.name} does not take")
            return False
        return self._hand_over(topic, author, forwarder, message)

    def goes_on(self, message: Any) -> bool:
        return _name(message) not in self._stopped

    def judged(self, message: Any) -> None:
        """All is done with a message."""
        self._stopped.discard(_name(message))

    def _hand_over(self, topic: Topic, author: PeerId, forwarder: Any, message: Any) -> bool:
        try:
            if not topic.receive(author, message.data):
                # Valid nevertheless: libp2p counts what is not against whoever passed it on.
                self._stopped.add(_name(message))
            return True
        except RemoteError as error:
            self._offences.refuse(PeerId(str(forwarder)), f"gossip: {topic.name}", error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the host
            self._journal.error(
                "handler_failed", f"the receiver of {topic.name} failed: {error!r}", peer=author
            )
        return False

    async def _accept(self, stream: Any) -> None:
        """Takes a gossip stream from an admitted peer; others are refused without a word."""
        peer = name_of(stream)
        member = await self._gate(peer)
        held = self._streams.get(peer, 0)  # counted after the gate, which lets many through at once
        if member is None or held >= MAX_STREAMS:
            await stream.reset()
            return
        self._streams[peer] = held + 1
        try:
            await self._pubsub.stream_handler(stream)
        except Exception as error:  # noqa: BLE001 - defect C: any bytes that are no message
            self.note(peer, f"malformed: {error!r}")
            with suppress(Exception):
                await stream.reset()
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]


class _Pubsub(Pubsub):  # type: ignore[misc]
    """Pubsub that speaks with admitted peers only, and outlives what they send."""

    def __init__(self, gossip: Gossip, host: Host) -> None:
        super().__init__(host.libp2p, gossip.router, strict_signing=True)
        self._gossip = gossip
        # Defect K: the default counts seconds, so that after a restart the first messages
        # carry numbers that peers have seen, and are dropped.
        self.counter = secrets.randbits(62)

    async def _handle_new_peer(self, peer: Any) -> None:
        if self._gossip.is_admitted(peer):
            await super()._handle_new_peer(peer)

    def handle_subscription(self, origin: Any, message: Any) -> None:
        if self._gossip.has_topic(message.topicid):
            super().handle_subscription(origin, message)

    def notify_subscriptions(self, message: Any) -> None:
        """Nothing: the topic's callable took the message when it judged it."""

    async def push_msg(self, forwarder: Any, message: Any) -> None:
        # Defect D: a garbage key in a message raises out of the task that runs this.
        try:
            await super().push_msg(forwarder, message)
        except Exception as error:  # noqa: BLE001
            self._gossip.note(forwarder, f"a message that cannot be checked: {error!r}")
        finally:
            self._gossip.judged(message)


class _Router(GossipSub):  # type: ignore[misc]
    """GossipSub whose background tasks do not end the host when one of them fails."""

    def __init__(self, gossip: Gossip) -> None:
        super().__init__(
            protocols=[PROTOCOL_ID_V12, PROTOCOL_ID_V11],
            degree=6,
            degree_low=4,
            degree_high=12,
            # Seconds; the default, 120, leaves a newcomer out of the mesh for two minutes.
            heartbeat_interval=1,
            # The default, 10, drops the announcements that one peer relays for many.
            max_messages_per_topic_per_second=200,
            # Whoever is here was admitted by its key; that many of them share a network is how
            # meshes are, and no attack.
            eclipse_protection_enabled=False,
        )
        self._gossip = gossip

    async def heartbeat(self) -> None:
        while True:
            try:
                await super().heartbeat()
            except Exception as error:  # noqa: BLE001
                self._gossip.fail(error)
                await trio.sleep(self.heartbeat_interval)

    async def publish(self, forwarder: Any, message: Any) -> None:
        if self._gossip.goes_on(message):
            await super().publish(forwarder, message)

    async def flush_pending_messages(self, peer: Any) -> None:
        await self._survive(super().flush_pending_messages, peer)

    async def send_recent_messages(self, peer: Any, topic: str) -> None:
        await self._survive(super().send_recent_messages, peer, topic)

    async def on_peer_subscribed(self, peer: Any, topic: str) -> None:
        await self._survive(super().on_peer_subscribed, peer, topic)

    async def _emit_idontwant_for_message(self, message: bytes, topics: Iterable[str]) -> None:
        """Nothing: to tell six peers that a message came costs more than the message would."""

    async def _do_px(self, peers: Any) -> None:
        """Nothing: whom to connect to is for peers.py to say."""

    async def _survive(self, step: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await step(*args)
        except Exception as error:  # noqa: BLE001
            self._gossip.fail(error)


def _name(message: Any) -> bytes:
    return bytes(message.from_id) + bytes(message.seqno)


@cache
def _send_no_records() -> None:
    """libp2p signs, sends and checks the sender's addresses with every message, which is a third
    of what gossip costs. Announcements say where a member listens.
    """
    for module in (pubsub, gossipsub):
        module.env_to_send_in_RPC = lambda host: (b"", False)
        module.maybe_consume_signed_record = lambda message, host, peer: True


def _unhook(host: Host) -> None:
    """Pubsub has itself told of every connection, to greet it; admission tells it instead."""
    network = host.libp2p.get_network()
    for notifee in [one for one in network.notifees if isinstance(one, PubsubNotifee)]:
        network.remove_notifee(notifee)
