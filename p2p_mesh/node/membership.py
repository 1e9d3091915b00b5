"""A node's membership while it runs: redeemed, kept, remembered and, at a holder, given."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from p2p_mesh import state
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import Credential, Invite, Member, Ticket, author_of
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Role
from p2p_mesh.core.revocation import Revoked
from p2p_mesh.core.signature import Signed
from p2p_mesh.errors import LocalError, MeshError, Unavailable
from p2p_mesh.journal import Journal

if TYPE_CHECKING:
    from p2p_mesh.net.identity import Identity

KEEP_EVERY = 120.0
"""Seconds between two times that the members that are connected are written down."""

NOTE_EVERY = 10.0
"""Seconds between two times that a holder writes down by what those came that are connected."""

MAX_HEARD = 16
"""Revocations that wait to be kept; of more, the newest ones."""

STOP_PATIENCE = 1.0
"""Seconds for writing them down when the node stops."""

STARTING = "the node is still starting; try again in a second"

Redeem = Callable[..., Awaitable[Credential]]
in_thread = trio.to_thread.run_sync


class Membership:
    """What is done on disk; the network is told, and tells, by callables."""

    def __init__(
        self, directory: Path, inventory: Inventory, journal: Journal, clock: Callable[[], float]
    ) -> None:
        self._directory = directory
        self._inventory = inventory
        self._journal = journal
        self._clock = clock
        self._heard: deque[Signed] = deque(maxlen=MAX_HEARD)
        self._came = trio.Event()
        self.belonging: state.Belonging | None = None
        self.inviter: state.Inviter | None = None
        self.adopt: Callable[[Signed], bool] | None = None
        """Acts on a revocation; the network's, once it is up."""
        self.connected: Mapping[PeerId, Member] = {}
        """The network's members, once it is up."""

    async def belong(
        self, tickets: tuple[Ticket, ...], identity: Identity, name: str, redeem: Redeem
    ) -> state.Belonging:
        """As state.belong; where the token must be redeemed first, this waits for that."""
        node, directory = identity.public_key, self._directory
        ticket = await in_thread(state.awaiting, directory, tickets, node)
        credential = None
        if ticket is not None:
            credential = await redeem(identity, ticket, journal=self._journal, rng=SystemRandom())
        now = self._clock()
        belong = partial(state.belong, directory, tickets, node, name, now, credential=credential)
        self.belonging = await in_thread(belong)
        return self.belonging

    async def kept(self) -> tuple[tuple[str, ...], Signed | None]:
        """Where to look for the mesh, and its newest revocation, as far as they are on disk."""
        assert self.belonging is not None
        mesh = self.belonging.id
        known = await in_thread(state.known_peers, self._directory, mesh)
        revocation = await in_thread(state.revocation, self._directory, mesh)
        return tuple(dict.fromkeys((*self.belonging.seeds, *known))), revocation

    async def listens(self, port: int) -> None:
        """Keeps the port for the next start; from now on invites can be made."""
        assert self.belonging is not None
        if port != self.belonging.port:
            self.belonging = msgspec.structs.replace(self.belonging, port=port)
            await in_thread(state.remember, self._directory, self.belonging)
        self.inviter = await in_thread(state.Inviter, self._directory, self.belonging, self._clock)

    async def run(self) -> None:
        """Writes down what changes, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_revocations)
            nursery.start_soon(self._keep_peers)
            nursery.start_soon(self._keep_arrivals)

    # Revocations

    def heard(self, signed: Signed) -> None:
        """A newer revocation holds from now on; or an older one has what the newest lacks."""
        self._heard.append(signed)
        self._came.set()

    async def _keep_revocations(self) -> None:
        while True:
            await self._came.wait()
            self._came = trio.Event()
            while self._heard:
                await self._keep_revocation(self._heard.popleft())

    async def _keep_revocation(self, signed: Signed) -> None:
        """A holder of the mesh key answers one that lacks what was revoked here by the next."""
        assert self.inviter is not None
        try:
            both = await in_thread(self.inviter.heard, signed)
        except MeshError as error:
            self._journal.error("revocation_not_kept", f"a revocation was not kept: {error}")
            return
        if both is not None and self.adopt is not None:
            self.adopt(both)

    # Members that are connected

    async def _keep_peers(self) -> None:
        try:
            while True:
                await trio.sleep(KEEP_EVERY)
                await self._write_peers()
        finally:
            with trio.move_on_after(STOP_PATIENCE) as scope:
                scope.shield = True
                await self._write_peers()

    async def _write_peers(self) -> None:
        assert self.belonging is not None
        assert self.inviter is not None
        offers = [
            (offer.peer, offer.announcement.addresses)
            for offer in self._inventory.offers()
            if offer.peer in self.connected
        ]
        try:
            await in_thread(state.remember_peers, self._directory, self.belonging.id, offers)
            if self.inviter.is_holder:
                await in_thread(self.inviter.saw, await self.seen())
        except MeshError as error:
            self._journal.warning("peers_not_kept", f"the known peers were not kept: {error}")

    async def _keep_arrivals(self) -> None:
        """Of a peer that is put out after it left, the invite must be known."""
        noted: set[Member] = set()
        while True:
            await trio.sleep(NOTE_EVERY)
            assert self.inviter is not None
            now = set(self.connected.values())
            if now == noted or not self.inviter.is_holder:
                continue
            try:
                await in_thread(self.inviter.saw, now - noted)
            except MeshError as error:
                self._journal.warning("arrivals_not_kept", f"who came was not kept: {error}")
            noted = now

    # At a holder of the mesh key

    @property
    def is_holder(self) -> bool:
        """This node holds the mesh key."""
        return self.inviter is not None and self.inviter.is_holder

    def _need(self) -> state.Inviter:
        if self.inviter is None:
            raise LocalError(STARTING)
        return self.inviter

    async def seen(self) -> tuple[Member, ...]:
        """The members that are connected, and those that announce themselves."""
        envelopes = [offer.envelope for offer in self._inventory.offers()]
        connected = tuple(self.connected.values())
        # Thousands of them take a while to read.
        announced = await in_thread(lambda: [author_of(one) for one in envelopes])
        return tuple({one.peer: one for one in (*announced, *connected)}.values())

    async def invite(
        self, seeds: tuple[str, ...], role: Role, until: int | None, **limits: int | None
    ) -> str:
        """A new invite; `limits` are `uses` and `join_by`. Raises LocalError."""
        return await in_thread(partial(self._need().make, seeds, role, until, **limits))

    async def standing(self, seeds: tuple[str, ...]) -> str | None:
        """The invite that the node prints; None where it does not hold the mesh key."""
        return await in_thread(self._need().standing, seeds)

    async def invites(self) -> list[dict[str, Any]]:
        """Every invite made here. Raises LocalError."""
        found: Iterable[state.InviteStatus] = await in_thread(
            self._need().invites, await self.seen()
        )
        return [msgspec.to_builtins(one) for one in found]

    async def revoke(self, text: str) -> dict[str, Any]:
        """Takes back an invite or a peer, and says who is out by that, and the id of the invite
        that lets nobody in any more; None where that of the peer is not known. Raises LocalError.
        """
        inviter, seen = self._need(), await self.seen()
        invite = await in_thread(inviter.invite_of, text, seen)
        signed = await in_thread(inviter.revoke, text, seen)
        revoked: Revoked = msgspec.msgpack.decode(signed.payload, type=Revoked)
        if self.adopt is not None:
            self.adopt(signed)
        out = sorted(one.peer for one in seen if revoked.is_revoked(one))
        return {"version": revoked.version, "peers": out, "invite": invite}

    async def redeem(self, invite: Invite, peer: bytes) -> Credential:
        """The membership of a node that has the token of an invite. Raises Refused where it lets
        nobody in any more, and Unavailable where it is not redeemed here.
        """
        if self.inviter is None:
            raise Unavailable(STARTING)
        return await in_thread(self.inviter.redeem, invite, peer)
