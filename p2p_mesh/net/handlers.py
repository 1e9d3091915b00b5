"""What the node supplies to its network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from p2p_mesh.core.invite import Credential, Invite, Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, ModelLoad, Query, Reply
from p2p_mesh.core.revocation import Revoked
from p2p_mesh.core.signature import Signed


class Handlers(Protocol):
    """What the node supplies. Nothing but `answer` and `look` may take long."""

    def snapshot(self) -> Sequence[bytes]:
        """The newest envelope of every member, this node's own included."""
        ...

    def holds(self, envelope: bytes) -> bool:
        """Whether this very envelope was heard, and is the newest of its author."""
        ...

    def heard(self, envelope: bytes) -> bool:
        """An inventory envelope came. True if it may be passed on, False if it stops here without
        anybody's fault; may raise RemoteError, which says that it is not valid.
        """
        ...

    def answer(
        self, request: InferenceRequest, asker: Member
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer to a member's request; leaving the context cancels it."""
        ...

    async def look(self, query: Query, asker: Member) -> Reply:
        """The reply to a member's query."""
        ...

    def load(self) -> tuple[ModelLoad, ...]:
        """How busy this node is with each of its models."""
        ...

    def heard_load(self, peer: PeerId, loads: tuple[ModelLoad, ...]) -> None:
        """A member says how busy it is."""
        ...

    async def redeem(self, invite: Invite, peer: bytes) -> Credential:
        """The membership of the node with the public key `peer`, by an invite that it has the
        token of. Raises Refused where that lets nobody in any more, and Unavailable where this
        node is not the one that redeems it.
        """
        ...

    def revoked(self, signed: Signed, revoked: Revoked) -> None:
        """A list came that holds from now on; or an older one that names what `revoked`, which
        holds, lacks: a holder of the mesh key joins the two.
        """
        ...

    def suspected(self, peer: PeerId, reason: str) -> None:
        """A peer gives no sign of life: it is to be asked last."""
        ...

    def revived(self, peer: PeerId) -> None:
        """A suspect gave a sign of life."""
        ...

    def joined(self, member: Member) -> None:
        """A peer was admitted."""
        ...

    def left(self, peer: PeerId, reason: str) -> None:
        """An admitted peer is connected no more."""
        ...
