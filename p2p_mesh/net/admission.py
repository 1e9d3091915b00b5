"""Who is admitted: the handshake right after connecting, and what follows from its result.

Theory of operation:

1. Whoever dialed runs the handshake, on one stream: hello both ways, the dialer's proof, the
   listener's proof, then the dialer's `end`. The listener answers nothing before the dialer's
   hello names its mesh, and proves nothing before the dialer has: it tells strangers nothing.
2. The dialer counts the listener as admitted before it sends `end`, the listener counts the
   dialer when `end` is there. So whichever first opens a stream to the other is expected.
3. A stream that arrives while its peer's handshake is under way waits for the result.
4. Admission is of a peer by its key, and lapses when the last connection to it closes.
5. A connection whose peer is not admitted in time is closed; so is one whose membership ends.
6. Each side's hello says which revocation it has, and its proof brings the other's up to date
   before the other judges it. Whoever is out is told so by the list itself.
7. A newcomer with an invite that is redeemed asks for its membership in place of a proof.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.admission import (
    VERSION,
    Hello,
    Proof,
    Redeem,
    Redeemed,
    Revocation,
    Transcript,
    check_hello,
    check_proof,
    check_redeem,
    prove,
)
from p2p_mesh.core.invite import Credential, Invite, Member
from p2p_mesh.core.names import MeshId, PeerId, mesh_id, public_key
from p2p_mesh.core.signature import Signed
from p2p_mesh.core.wire import ADMISSION_LIMIT, End, ErrorMessage
from p2p_mesh.errors import Refused, RemoteError, Unavailable
from p2p_mesh.net.host import Host, name_of
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import CLOSE_TIMEOUT, Stream, open_raw, protocol_id
from p2p_mesh.net.redemption import Pace
from p2p_mesh.net.revocation import Revocations

DEADLINE = 15.0
"""Seconds for the whole handshake."""

GRACE = 20.0
"""Seconds that a connection may stand before its peer is admitted."""

MAX_SEEN = 1024
"""Signatures of handshakes that are kept, to tell a replayed one from a forged one."""

_LONGEST_SLEEP = 600.0
# A member's end is in the time of the clock, which may be set; so it is looked at again.


@dataclass(frozen=True, slots=True)
class Ourselves:
    """What this node proves, and the mesh it proves it to."""

    peer: PeerId
    key: Ed25519PrivateKey
    mesh_key: bytes
    credential: Credential

    @property
    def mesh(self) -> MeshId:
        return mesh_id(self.mesh_key)


@dataclass(frozen=True, slots=True)
class Holder:
    """What admission needs of its node beside the keys."""

    revocations: Revocations
    adopt: Callable[[Signed], bool]
    """Takes a revocation that a peer told. Raises RemoteError."""
    redeem: Callable[[Invite, bytes], Awaitable[Credential]]
    """The membership of a peer, by an invite that is redeemed. Raises Refused where that is none
    any more, and Unavailable where this node is not the one to ask.
    """


class Admission:
    """Runs handshakes and holds their results."""

    def __init__(
        self,
        host: Host,
        ourselves: Ourselves,
        offences: Offences,
        clock: Callable[[], float],
        nursery: trio.Nursery,
        *,
        holder: Holder,
        joined: Callable[[Member], None],
        left: Callable[[PeerId, str], None],
    ) -> None:
        self._host = host
        self._ourselves = ourselves
        self._offences = offences
        self._clock = clock
        self._holder = holder
        self._pace = Pace()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._joined = joined
        self._left = left
        self._members: dict[PeerId, Member] = {}
        self._conns: dict[PeerId, set[Any]] = {}
        self._under_way: Counter[PeerId] = Counter()
        self._settled: dict[PeerId, trio.Event] = {}
        self._nursery = nursery
        host.watch(self._came, self._went)
        host.handle(protocol_id("admission"), self._listen)

    @property
    def members(self) -> Mapping[PeerId, Member]:
        return MappingProxyType(self._members)

    async def gate(self, peer: PeerId) -> Member | None:
        """The member that the peer is, waiting while its handshake is under way."""
        if peer not in self._members and self._under_way[peer]:
            with trio.move_on_after(DEADLINE):
                await self._settled.setdefault(peer, trio.Event()).wait()
        return self._members.get(peer)

    async def prove(self, peer: PeerId) -> Member:
        """Runs the handshake with a peer that we dialed. Raises Refused and Unavailable."""
        if peer in self._members:
            return self._members[peer]
        with _deadline(peer), self._handshake(peer):
            raw = await open_raw(self._host, peer, "admission")
            stream = Stream(raw, peer, ADMISSION_LIMIT)
            try:
                return await self._dialer(stream)
            except RemoteError as error:
                await self._refuse(stream, error)
                raise
            finally:
                await stream.close()

    async def _dialer(self, stream: Stream) -> Member:
        hello = self._hello()
        await stream.tell(hello)
        theirs = await self._hear(stream, Hello)
        check_hello(theirs, self._ourselves.mesh)
        await stream.tell(self._prove(stream.peer, hello, theirs, self._news(theirs)))
        proof = await self._hear(stream, Proof)
        member = self._check(stream.peer, proof, theirs, hello)
        self._admit(member)
        await stream.tell(End())
        return member

    async def _listen(self, raw: Any) -> None:
        """The other end of `prove`. Never raises: strangers come by here."""
        peer = name_of(raw)
        stream = Stream(raw, peer, ADMISSION_LIMIT)
        if self._under_way[peer] > 4:
            await stream.reset()
            return
        try:
            with _deadline(peer), self._handshake(peer):
                await self._listener(stream)
        except RemoteError as error:
            if not self._holder.revocations.is_out:  # whoever refuses a revoked node is right
                self._offences.refuse(peer, "admission", error)
            await self._refuse(stream, error)
        except Unavailable as error:
            await stream.complain(error)
        await stream.close()

    async def _listener(self, stream: Stream) -> None:
        theirs: Hello = await stream.hear(Hello)
        check_hello(theirs, self._ourselves.mesh)
        hello = self._hello()
        await stream.tell(hello)
        message: Proof | Redeem = await self._hear(stream, Proof | Redeem)
        if isinstance(message, Redeem):
            await self._redeem(stream, message, theirs, hello)
            return
        before = self._news(theirs)
        member = self._check(stream.peer, message, theirs, hello)
        # Where theirs has just replaced ours, they get ours all the same: of two lists that two
        # holders made, each may name what the other lacks.
        news = self._news(theirs) or before
        await stream.tell(self._prove(stream.peer, hello, theirs, news))
        await self._hear(stream, End)  # or the list, if the dialer has one that names this node
        self._admit(member)

    async def _redeem(self, stream: Stream, redeem: Redeem, theirs: Hello, ours: Hello) -> None:
        us, revoked = self._ourselves, self._holder.revocations.revoked
        transcript = _transcript(us.mesh, stream.peer, us.peer, theirs, ours)
        with self._once(redeem.signature):
            invite = check_redeem(redeem, transcript, us.mesh_key, revoked)
        with self._pace.attempt(stream.peer, invite.key):
            credential = await self._holder.redeem(invite, public_key(stream.peer))
        await stream.tell(Redeemed(credential=credential))

    def _hello(self) -> Hello:
        mesh, mark = self._ourselves.mesh, self._holder.revocations.mark
        nonce = secrets.token_bytes(32)
        return Hello(version=VERSION, mesh=mesh, nonce=nonce, revocation=mark)

    def _news(self, theirs: Hello) -> Signed | None:
        return self._holder.revocations.unless(theirs.revocation)

    def _prove(self, verifier: PeerId, ours: Hello, theirs: Hello, news: Signed | None) -> Proof:
        us = self._ourselves
        transcript = _transcript(us.mesh, us.peer, verifier, ours, theirs)
        return prove(transcript, us.credential, us.key, news)

    def _check(self, prover: PeerId, proof: Proof, theirs: Hello, ours: Hello) -> Member:
        us = self._ourselves
        if proof.revocation is not None:
            self._holder.adopt(proof.revocation)
        transcript = _transcript(us.mesh, prover, us.peer, theirs, ours)
        revoked = self._holder.revocations.revoked
        with self._once(proof.signature):
            return check_proof(proof, transcript, us.mesh_key, self._clock(), revoked)

    @contextmanager
    def _once(self, signature: bytes) -> Iterator[None]:
        """Calls a signature that fails replayed where it was good before, and keeps a good one."""
        try:
            yield
        except Refused as error:
            if signature not in self._seen or error.reason != "forged":
                raise
            what = "a replayed handshake: its signature was used before"
            raise Refused(what, reason="replayed") from error
        self._seen[signature] = None
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    async def _hear(self, stream: Stream, kind: Any) -> Any:
        message = await stream.hear(kind | Revocation | ErrorMessage)
        if isinstance(message, Revocation):
            self._holder.adopt(message.revocation)
            raise Refused("the peer refuses: this node's membership was revoked")
        if not isinstance(message, ErrorMessage):
            return message
        error = message.error()
        if isinstance(error, Unavailable):
            raise error
        raise Refused(f"the peer refuses: {error}")

    async def _refuse(self, stream: Stream, error: RemoteError) -> None:
        """Says why; to one that was revoked by the list, which it can check."""
        signed = self._holder.revocations.signed
        if not isinstance(error, Refused) or error.reason != "revoked" or signed is None:
            await stream.complain(error)
            return
        with suppress(Unavailable), trio.move_on_after(CLOSE_TIMEOUT):
            await stream.tell(Revocation(revocation=signed))

    @contextmanager
    def _handshake(self, peer: PeerId) -> Iterator[None]:
        self._under_way[peer] += 1
        try:
            yield
        finally:
            self._under_way[peer] -= 1
            if not self._under_way[peer]:
                del self._under_way[peer]
            if not self._under_way[peer] or peer in self._members:
                self._settle(peer)

    def _settle(self, peer: PeerId) -> None:
        if (settled := self._settled.pop(peer, None)) is not None:
            settled.set()

    def _admit(self, member: Member) -> None:
        if member.peer in self._members:
            return  # the other of two simultaneous dials was faster
        if self._holder.revocations.revoked.is_revoked(member):  # since it was checked
            raise Refused("the membership was revoked; ask for a new invite", reason="revoked")
        if not self._conns.get(member.peer):
            raise Unavailable(f"{member.peer} closed the connection")
        self._members[member.peer] = member
        self._settle(member.peer)
        if member.until is not None:
            self._nursery.start_soon(self._end_at, member, member.until)
        self._joined(member)

    def judge_again(self) -> None:
        """Drops every member that the newest revocation names; all, where it names this node."""
        revocations = self._holder.revocations
        whose = "this node's" if revocations.is_out else "its"
        for member in tuple(self._members.values()):
            if revocations.is_out or revocations.revoked.is_revoked(member):
                self._lapse(member.peer, f"{whose} membership was revoked")
                self._nursery.start_soon(self._host.drop, member.peer)

    async def expel(self, peer: PeerId, reason: str) -> None:
        """Drops a peer and says why."""
        self._lapse(peer, reason)
        await self._host.drop(peer)

    async def _end_at(self, member: Member, until: int) -> None:
        while self._members.get(member.peer) is member:
            rest = until - self._clock()
            if rest <= 0:
                await self.expel(member.peer, "its membership has ended")
                return
            await trio.sleep(min(rest, _LONGEST_SLEEP))

    def _came(self, conn: Any) -> None:
        peer = name_of(conn)
        live = {known for known in self._conns.get(peer, ()) if not known.is_closed}
        if not live:
            # It came back before libp2p said that it was gone.
            self._lapse(peer, "the connection closed")
        self._conns[peer] = live | {conn}
        self._nursery.start_soon(self._expect, peer, conn)

    def _went(self, conn: Any) -> None:
        peer = name_of(conn)
        live = {known for known in self._conns.get(peer, ()) if not known.is_closed}
        live.discard(conn)
        if live:
            self._conns[peer] = live
            return
        self._conns.pop(peer, None)
        self._lapse(peer, "the connection closed")
        self._host.forget(peer)

    def _lapse(self, peer: PeerId, reason: str) -> None:
        if self._members.pop(peer, None) is not None:
            self._left(peer, reason)

    async def _expect(self, peer: PeerId, conn: Any) -> None:
        await trio.sleep(GRACE)
        if peer not in self._members and not conn.is_closed:
            await self._host.drop(peer)


def _transcript(
    mesh: MeshId, prover: PeerId, verifier: PeerId, provers: Hello, verifiers: Hello
) -> Transcript:
    return Transcript(
        mesh=mesh,
        prover=prover,
        verifier=verifier,
        prover_nonce=provers.nonce,
        verifier_nonce=verifiers.nonce,
    )


@contextmanager
def _deadline(peer: PeerId) -> Iterator[None]:
    try:
        with trio.fail_after(DEADLINE):
            yield
    except trio.TooSlowError as error:
        raise Unavailable(f"{peer} did not finish admission in {DEADLINE:g} s") from error
