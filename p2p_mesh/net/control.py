"""Orders of an owner, given and taken: one on each stream (specs/control/README.md).

The node that is ordered about draws a nonce for the stream and sends it first, so no order holds
twice. It answers with a report, and does not make its caller wait until a model is loaded or an
answer has ended: whoever wants to know asks again.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.control import Challenge, Command, Ordered, Report, check_order, give_order
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import End, ErrorMessage
from p2p_mesh.errors import Overloaded, Unavailable
from p2p_mesh.net.protocols import Protocol, Protocols, Stream, hear_end

CONTROL_LIMIT = 1 << 20
"""A report on 256 models."""

ORDER_DEADLINE = 10.0
"""Seconds from the nonce to the order."""

OBEY_DEADLINE = 30.0
"""Seconds in which a command must have begun, and its report be sent."""

DEADLINE = 45.0
"""Seconds for the whole of it, where the order is given."""

MAX_STREAMS = 2
"""Streams that one member may keep open to us."""

PROTOCOL = Protocol("control", CONTROL_LIMIT)

Obey = Callable[[Command, bytes, PeerId], Awaitable[Report]]
"""Carries out a command whose order was checked; is told the owner's key, and who brought it."""


class Control:
    """Both ends. A node accepts no owner before `accept`."""

    def __init__(self, protocols: Protocols, us: PeerId, clock: Callable[[], float]) -> None:
        self._protocols = protocols
        self._us = us
        self._clock = clock
        self._owners: Collection[bytes] = ()
        self._obey: Obey | None = None
        self._streams: Counter[PeerId] = Counter()
        protocols.serve(PROTOCOL, self._serve)

    def accept(self, owners: Collection[bytes], obey: Obey) -> None:
        """From now on, obeys these owners."""
        self._owners, self._obey = frozenset(owners), obey

    async def order(self, peer: PeerId, command: Command, key: Ed25519PrivateKey) -> Report:
        """What an admitted peer reports. Raises Unavailable, and what the peer says instead."""
        late = f"{peer} did not take the order in {DEADLINE:g} s"
        with _deadline(DEADLINE, late):
            async with self._protocols.open(peer, PROTOCOL) as stream:
                return await self._give(stream, command, key)

    async def _give(self, stream: Stream, command: Command, key: Ed25519PrivateKey) -> Report:
        challenge = await _hear(stream, Challenge)
        await stream.tell(
            give_order(
                command, target=stream.peer, nonce=challenge.nonce, key=key, now=self._clock()
            )
        )
        report: Report = await _hear(stream, Report)
        await hear_end(stream)
        return report

    async def _serve(self, stream: Stream, member: Member) -> None:
        if self._streams[member.peer] >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} orders of {member.peer} are being taken already")
        self._streams[member.peer] += 1
        try:
            await self._take(stream, member)
        finally:
            self._streams[member.peer] -= 1
            if not self._streams[member.peer]:
                del self._streams[member.peer]

    async def _take(self, stream: Stream, member: Member) -> None:
        nonce = secrets.token_bytes(32)
        with _deadline(ORDER_DEADLINE, "the order did not come in time"):
            await stream.tell(Challenge(nonce=nonce))
            ordered: Ordered = await stream.hear(Ordered)
        command = check_order(
            ordered, target=self._us, nonce=nonce, owners=self._owners, now=self._clock()
        )
        assert self._obey is not None, "an owner was accepted, and so there is who obeys"
        with _deadline(OBEY_DEADLINE, "the command did not begin in time"):
            await stream.tell(await self._obey(command, ordered.owner, member.peer))
            await stream.tell(End())


@contextmanager
def _deadline(seconds: float, late: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise Unavailable(late) from error


async def _hear(stream: Stream, kind: Any) -> Any:
    message = await stream.hear(kind | ErrorMessage)
    if isinstance(message, ErrorMessage):
        raise message.error()
    return message
