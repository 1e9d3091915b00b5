"""Invites that are redeemed: a newcomer asks a node with the mesh key for its membership.

The newcomer has no credential yet, so nobody would admit it. It connects from a host of its own
that listens nowhere, asks in the admission protocol, and closes; then it is a member like others.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio

from p2p_mesh.core.admission import (
    VERSION,
    Hello,
    Redeemed,
    Revocation,
    Transcript,
    ask_redeem,
    check_hello,
)
from p2p_mesh.core.backoff import delay
from p2p_mesh.core.invite import Credential, Ticket, check
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import ADMISSION_LIMIT, ErrorMessage
from p2p_mesh.errors import MeshError, Overloaded, Refused, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net.host import Host
from p2p_mesh.net.identity import Identity
from p2p_mesh.net.peers import read_seeds
from p2p_mesh.net.protocols import Stream, open_raw

DEADLINE = 15.0
"""Seconds for one question to one seed, once it is connected."""

LONGEST_WAIT = 30.0
"""Seconds between two rounds over the seeds, at most."""

MINUTE = 60.0
ATTEMPTS_OF_A_PEER = 8
"""Redemptions of one peer that a holder looks at in a MINUTE."""

FAILURES = 480
FAILURES_OF_AN_INVITE = 16
"""Those of a MINUTE that gave no membership: of all invites together, and of one. What gave one
cost a use of the invite, and is bounded by these.
"""

MAX_ATTEMPTS = 8192
MAX_GIVEN = 8192


@dataclass(slots=True)
class _Attempt:
    time: float
    peer: PeerId
    invite: bytes
    has_failed: bool = True
    """Until it has not."""


class Pace:
    """Bounds the redemptions that a holder looks at. Each asker has shown its token already, so
    strangers keep nobody out; and who has the token of one invite keeps out nobody with another's,
    nor those that it was redeemed by.
    """

    def __init__(self) -> None:
        self._attempts: deque[_Attempt] = deque(maxlen=MAX_ATTEMPTS)
        self._given: OrderedDict[tuple[PeerId, bytes], None] = OrderedDict()

    @contextmanager
    def attempt(self, peer: PeerId, invite: bytes) -> Iterator[None]:
        """Holds one redemption, which has failed if this is left with an error. Raises Overloaded
        where it is too many.
        """
        now = trio.current_time()
        while self._attempts and now - self._attempts[0].time >= MINUTE:
            self._attempts.popleft()
        if self._is_too_many(peer, invite):
            raise Overloaded("too many redemptions in a minute", retry_after=MINUTE)
        attempt = _Attempt(now, peer, invite)
        self._attempts.append(attempt)
        yield
        attempt.has_failed = False
        self._given[peer, invite] = None
        if len(self._given) > MAX_GIVEN:
            self._given.popitem(last=False)

    def _is_too_many(self, peer: PeerId, invite: bytes) -> bool:
        if sum(one.peer == peer for one in self._attempts) >= ATTEMPTS_OF_A_PEER:
            return True
        if (peer, invite) in self._given:
            return False
        failures = [one.invite for one in self._attempts if one.has_failed]
        return len(failures) >= FAILURES or failures.count(invite) >= FAILURES_OF_AN_INVITE


async def redeem(
    identity: Identity,
    ticket: Ticket,
    *,
    journal: Journal,
    rng: Random,
    transports: Sequence[Any] | None = None,
) -> Credential:
    """The membership that a seed of the token gives; asks them for ever, all at once, with pauses.

    Raises Refused where a node of the mesh says no.
    """
    asker = _Asker(identity, ticket, Host(identity, journal, transports=transports))
    seeds = read_seeds(ticket.invite.seeds, identity.peer_id, journal)
    where = ", ".join(seed.partition("/p2p/")[0] for seed in ticket.invite.seeds)[:500]
    journal.info("redeeming", f"Asking for a membership of {ticket.invite.name} at {where}")
    said, attempt = "", 0
    async with asker.host.run([]):
        while True:
            round_ = await asker.ask(seeds)
            if round_.credential is not None:
                journal.info("redeemed", f"This node is a member of {ticket.invite.name} now")
                return round_.credential
            if round_.refusal is not None:
                raise round_.refusal
            why = "; ".join(round_.failures)[:500] or "the token names no address"
            if why != said:
                journal.warning(
                    "not_redeemed",
                    f"Nobody redeems the invite to {ticket.invite.name} yet: {why}. This node goes "
                    "on asking",
                )
                said = why
            await trio.sleep(delay(attempt, rng, most=LONGEST_WAIT))
            attempt += 1


@dataclass(slots=True)
class _Round:
    """What one round over all seeds gave."""

    credential: Credential | None = None
    refusal: Refused | None = None
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Asker:
    identity: Identity
    ticket: Ticket
    host: Host

    async def ask(self, seeds: dict[PeerId, tuple[str, ...]]) -> _Round:
        """Asks all seeds at once, until one gives a membership."""
        found = _Round()
        with bare():
            async with trio.open_nursery() as nursery:
                for peer, addresses in seeds.items():
                    nursery.start_soon(self._try, peer, addresses, found, nursery.cancel_scope)
        return found

    async def _try(
        self, peer: PeerId, addresses: tuple[str, ...], found: _Round, scope: trio.CancelScope
    ) -> None:
        try:
            await self.host.dial(peer, addresses)
            with _deadline(peer):
                found.credential = await self._ask(peer, found)
        except MeshError as error:
            found.failures.append(f"{peer}: {error}")
        else:
            scope.cancel()

    async def _ask(self, peer: PeerId, found: _Round) -> Credential:
        stream = Stream(await open_raw(self.host, peer, "admission"), peer, ADMISSION_LIMIT)
        try:
            transcript = await self._greet(stream)
            await stream.tell(ask_redeem(transcript, self.ticket.signed, self.ticket.seed))
            answer = await stream.hear(Redeemed | Revocation | ErrorMessage)
        finally:
            await stream.close()
        if isinstance(answer, Redeemed):
            return self._taken(answer.credential)
        error = answer.error() if isinstance(answer, ErrorMessage) else Refused("it was revoked")
        if isinstance(error, Refused):
            # It is of this mesh, or would have said no to the hello: so its word holds.
            found.refusal = Refused(f"the invite was not redeemed: {error}", reason=error.reason)
        raise error

    async def _greet(self, stream: Stream) -> Transcript:
        ours = Hello(version=VERSION, mesh=self.ticket.mesh, nonce=secrets.token_bytes(32))
        await stream.tell(ours)
        theirs: Hello | ErrorMessage = await stream.hear(Hello | ErrorMessage)
        if isinstance(theirs, ErrorMessage):
            raise theirs.error()
        check_hello(theirs, self.ticket.mesh)
        return Transcript(
            mesh=self.ticket.mesh,
            prover=self.identity.peer_id,
            verifier=stream.peer,
            prover_nonce=ours.nonce,
            verifier_nonce=theirs.nonce,
        )

    def _taken(self, credential: Credential) -> Credential:
        """The membership, if it is this node's. When it ends is for the node to look at."""
        member = check(credential, self.ticket.invite.mesh, 0.0)
        if member.peer != self.identity.peer_id:
            raise RemoteError("it gave the membership of another node")
        return credential


@contextmanager
def _deadline(peer: PeerId) -> Iterator[None]:
    try:
        with trio.fail_after(DEADLINE):
            yield
    except trio.TooSlowError as error:
        raise Unavailable(f"{peer} did not answer in {DEADLINE:g} s") from error
