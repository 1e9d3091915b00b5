"""Snapshots: the newest announcement of every member, asked for right after admission."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from p2p_mesh.core.inventory import MAX_MEMBERS, Announced, AskSnapshot
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import INVENTORY_LIMIT, End, ErrorMessage
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net.protocols import Protocol, Protocols, Stream

DEADLINE = 60.0
"""Seconds for a whole snapshot."""

ASK_DEADLINE = 10.0
MAX_AT_A_TIME = 16
"""Snapshots that are being sent; a herd of joiners is served in turns."""

PROTOCOL = Protocol("inventory", INVENTORY_LIMIT)


class Snapshots:
    def __init__(
        self,
        protocols: Protocols,
        snapshot: Callable[[], Sequence[bytes]],
        heard: Callable[[bytes], bool],
    ) -> None:
        self._protocols = protocols
        self._snapshot = snapshot
        self._heard = heard
        self._turns = trio.Semaphore(MAX_AT_A_TIME)
        protocols.serve(PROTOCOL, self._serve)

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
            message = await stream.hear(Announced | End | ErrorMessage)
            if isinstance(message, End):
                return count
            if isinstance(message, ErrorMessage):
                raise message.error()
            try:
                self._heard(message.envelope)
            except RemoteError:
                # What a peer holds may have lapsed on the way, or be another version's; the
                # rest of its snapshot is as good.
                continue
        raise RemoteError(f"a snapshot of more than {MAX_MEMBERS} members")

    async def _serve(self, stream: Stream, member: Member) -> None:
        with trio.move_on_after(DEADLINE):
            with trio.move_on_after(ASK_DEADLINE) as asking:
                await stream.hear(AskSnapshot)
            if asking.cancelled_caught:
                return
            async with self._turns:
                for envelope in tuple(self._snapshot())[:MAX_MEMBERS]:
                    await stream.tell(Announced(envelope=envelope))
                await stream.tell(End())
