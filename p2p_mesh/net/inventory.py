"""Announcements on streams: the newest of every member, asked for right after admission, and all
that come from then on, for clients, who take no part in that gossip.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from random import Random
from typing import Protocol as Shape

import trio

from p2p_mesh.core.backoff import delay
from p2p_mesh.core.inventory import MAX_MEMBERS, Announced, AskSnapshot, lifetime
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import INVENTORY_LIMIT, End, ErrorMessage
from p2p_mesh.errors import MeshError, Overloaded, Refused, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import Protocol, Protocols, Stream

DEADLINE = 60.0
"""Seconds for a whole snapshot."""

ASK_DEADLINE = 10.0
MAX_AT_A_TIME = 16
"""Snapshots that are being sent; a herd of joiners is served in turns."""

MAX_TO_ONE = 2
"""of them to one member."""

MAX_ASKED = 4
"""Snapshots that this node takes at a time,"""
PLENTY = 1000
"""and announcements that it takes in snapshots, within"""
RECENT = 60.0
"""seconds: then it asks no more peers, since in a large mesh one says what the next one would."""

MAX_FOLLOWERS = 512
MAX_FOLLOWING = 2
"""Streams by which one peer follows."""

MAX_WAITING = 256
"""Announcements that wait for a follower; then it must ask again."""

LONGEST_WAIT = 30.0
"""Seconds between two tries to follow somebody, at most."""

PROTOCOL = Protocol("inventory", INVENTORY_LIMIT)


class Handlers(Shape):
    """What the node supplies, as in handlers.py."""

    def snapshot(self) -> Sequence[bytes]: ...

    def holds(self, envelope: bytes) -> bool: ...

    def heard(self, envelope: bytes) -> bool: ...


class Snapshots:
    """Both ends of the protocol."""

    def __init__(
        self, protocols: Protocols, handlers: Handlers, offences: Offences, journal: Journal
    ) -> None:
        self._protocols = protocols
        self._handlers = handlers
        self._offences = offences
        self._journal = journal
        self._turns = trio.Semaphore(MAX_AT_A_TIME)
        self._sending: Counter[PeerId] = Counter()
        self._asking = trio.Semaphore(MAX_ASKED)
        self._taken: deque[tuple[float, int]] = deque()
        self._followers: dict[trio.MemorySendChannel[bytes], PeerId] = {}
        self._came = trio.Event()
        protocols.serve(PROTOCOL, self._serve)

    def hear(self, envelope: bytes) -> bool:
        """Takes an announcement in, and tells those who follow; True if it may be passed on. What
        is held already was checked when it came. Raises RemoteError.
        """
        if self._handlers.holds(envelope):
            return True
        goes_on = self._handlers.heard(envelope)
        if self._handlers.holds(envelope):
            self.spread(envelope)
        return goes_on

    def spread(self, envelope: bytes) -> None:
        """Tells all who follow."""
        for channel in tuple(self._followers):
            try:
                channel.send_nowait(envelope)
            except trio.WouldBlock:
                channel.close()
                del self._followers[channel]

    def poke(self) -> None:
        """A member came, whom a client may follow."""
        self._came.set()
        self._came = trio.Event()

    # The asking end

    async def catch_up(self, peer: PeerId) -> None:
        """Hears what a peer knows, unless others have just said enough."""
        async with self._asking:
            if self._has_plenty():
                return
            try:
                self._taken.append((trio.current_time(), await self.fetch(peer)))
            except MeshError as error:
                self._journal.debug("no_snapshot", f"no snapshot from {peer}: {error}", peer=peer)
            except Exception as error:  # noqa: BLE001 - of the handler, over what a peer sent
                self._journal.error("handler_failed", f"a snapshot failed: {error!r}", peer=peer)

    def _has_plenty(self) -> bool:
        while self._taken and trio.current_time() - self._taken[0][0] >= RECENT:
            self._taken.popleft()
        return sum(count for _, count in self._taken) >= PLENTY

    async def fetch(self, peer: PeerId) -> int:
        """Hears what a peer knows; how many announcements that were.
        Raises Unavailable and RemoteError.
        """
        try:
            with trio.fail_after(DEADLINE):
                async with self._protocols.open(peer, PROTOCOL) as stream:
                    await stream.tell(AskSnapshot())
                    return await self._take(stream)
        except trio.TooSlowError as error:
            raise Unavailable(f"{peer} took too long over its snapshot") from error

    async def _take(self, stream: Stream) -> int:
        for count in range(MAX_MEMBERS + 1):
            if not await self._take_one(stream):
                return count
        raise RemoteError(f"a snapshot of more than {MAX_MEMBERS} members")

    async def _take_one(self, stream: Stream) -> bool:
        """Hears one announcement; False: that was all."""
        # Frames that are here already are heard without a turn of the loop, and there may be many.
        await trio.lowlevel.checkpoint()
        message = await stream.hear(Announced | End | ErrorMessage)
        if isinstance(message, End):
            return False
        if isinstance(message, ErrorMessage):
            raise message.error()
        try:
            self.hear(message.envelope)
        except RemoteError as error:
            # What a peer holds may have lapsed on the way; else it has passed on what it must
            # not. The rest of what it says is as good.
            if not isinstance(error, Refused) or error.reason != "expired":
                self._offences.refuse(stream.peer, "inventory", error)
        return True

    async def follow(self, members: Mapping[PeerId, Member], rng: Random) -> None:
        """Hears all from one of the members, and from another when that one fails; for ever."""
        attempt = 0
        while True:
            choice = [peer for peer, one in members.items() if one.role == "member"]
            if not choice:
                await self._came.wait()
                continue
            before = trio.current_time()
            await self._follow(rng.choice(choice))
            attempt = 0 if trio.current_time() - before > LONGEST_WAIT else attempt + 1
            await trio.sleep(delay(attempt, rng, most=LONGEST_WAIT))

    async def _follow(self, peer: PeerId) -> None:
        try:
            async with self._protocols.open(peer, PROTOCOL) as stream:
                await stream.tell(AskSnapshot(updates=True))
                with trio.move_on_after(self._patience()) as patience:
                    while await self._take_one(stream):
                        patience.deadline = trio.current_time() + self._patience()
        except MeshError as error:
            self._journal.debug("not_followed", f"{peer} tells no more: {error}", peer=peer)

    def _patience(self) -> float:
        """Seconds until somebody must have announced itself: whoever is followed, if no other."""
        return lifetime(len(self._handlers.snapshot()))

    # The answering end

    async def _serve(self, stream: Stream, member: Member) -> None:
        with trio.move_on_after(ASK_DEADLINE) as asking:
            ask: AskSnapshot = await stream.hear(AskSnapshot)
        if asking.cancelled_caught:
            return
        if not ask.updates:
            await self._send(stream)
            await stream.tell(End())
            return
        with self._following(member) as news, suppress(Unavailable), bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_wait_for_end, stream, nursery.cancel_scope)
                await self._send(stream)
                async for envelope in news:
                    await stream.tell(Announced(envelope=envelope))
                await stream.tell(End())
                nursery.cancel_scope.cancel()

    async def _send(self, stream: Stream) -> None:
        try:
            with self._counted(stream.peer), trio.fail_after(DEADLINE):
                async with self._turns:
                    for envelope in tuple(self._handlers.snapshot())[:MAX_MEMBERS]:
                        await stream.tell(Announced(envelope=envelope))
        except trio.TooSlowError as error:
            raise Unavailable(f"{stream.peer} took too long over a snapshot") from error

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        if self._sending[peer] >= MAX_TO_ONE:
            raise Overloaded(f"{MAX_TO_ONE} snapshots for you are under way", retry_after=1.0)
        self._sending[peer] += 1
        try:
            yield
        finally:
            self._sending[peer] -= 1
            if not self._sending[peer]:
                del self._sending[peer]

    @contextmanager
    def _following(self, member: Member) -> Iterator[trio.MemoryReceiveChannel[bytes]]:
        """What is heard from now on. Where it is not taken in time, it ends."""
        of_peer = Counter(self._followers.values())[member.peer]
        if len(self._followers) >= MAX_FOLLOWERS or of_peer >= MAX_FOLLOWING:
            raise Overloaded("too many follow what this node hears; ask another one")
        put, take = trio.open_memory_channel[bytes](MAX_WAITING)
        self._followers[put] = member.peer
        try:
            with put, take:
                yield take
        finally:
            self._followers.pop(put, None)


async def _wait_for_end(stream: Stream, scope: trio.CancelScope) -> None:
    """A follower says nothing more; what comes instead is the end of its stream."""
    with suppress(MeshError):
        await stream.receive()
    scope.cancel()
