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
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.admission import (
    VERSION,
    Hello,
    Proof,
    Transcript,
    check_hello,
    check_proof,
    prove,
)
from p2p_mesh.core.invite import Credential, Member
from p2p_mesh.core.names import MeshId, PeerId, mesh_id
from p2p_mesh.core.wire import ADMISSION_LIMIT, End, ErrorMessage
from p2p_mesh.errors import Refused, RemoteError, Unavailable
from p2p_mesh.net.host import Host, name_of
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import Stream, hear_end, open_raw, protocol_id

DEADLINE = 15.0
"""Seconds for the whole handshake."""

GRACE = 20.0
"""Seconds that a connection may stand before its peer is admitted."""

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
        joined: Callable[[Member], None],
        left: Callable[[PeerId, str], None],
    ) -> None:
        self._host = host
        self._ourselves = ourselves
        self._offences = offences
        self._clock = clock
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
                await stream.complain(error)
                raise
            finally:
                await stream.close()

    async def _dialer(self, stream: Stream) -> Member:
        hello = self._hello()
        await stream.tell(hello)
        theirs = await _hear(stream, Hello)
        check_hello(theirs, self._ourselves.mesh)
        await stream.tell(self._prove(stream.peer, hello, theirs))
        proof = await _hear(stream, Proof)
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
                self._admit(await self._listener(stream))
        except RemoteError as error:
            self._offences.note(peer, f"admission: {error}")
            await stream.complain(error)
        except Unavailable as error:
            await stream.complain(error)
        await stream.close()

    async def _listener(self, stream: Stream) -> Member:
        theirs: Hello = await stream.hear(Hello)
        check_hello(theirs, self._ourselves.mesh)
        hello = self._hello()
        await stream.tell(hello)
        proof: Proof = await _hear(stream, Proof)
        member = self._check(stream.peer, proof, theirs, hello)
        await stream.tell(self._prove(stream.peer, hello, theirs))
        await hear_end(stream)
        return member

    def _hello(self) -> Hello:
        mesh = self._ourselves.mesh
        return Hello(version=VERSION, mesh=mesh, nonce=secrets.token_bytes(32))

    def _prove(self, verifier: PeerId, ours: Hello, theirs: Hello) -> Proof:
        us = self._ourselves
        transcript = _transcript(us.mesh, us.peer, verifier, ours, theirs)
        return prove(transcript, us.credential, us.key)

    def _check(self, prover: PeerId, proof: Proof, theirs: Hello, ours: Hello) -> Member:
        us = self._ourselves
        transcript = _transcript(us.mesh, prover, us.peer, theirs, ours)
        return check_proof(proof, transcript, us.mesh_key, self._clock())

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
        if not self._conns.get(member.peer):
            raise Unavailable(f"{member.peer} closed the connection")
        self._members[member.peer] = member
        self._settle(member.peer)
        if member.until is not None:
            self._nursery.start_soon(self._end_at, member, member.until)
        self._joined(member)

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


async def _hear(stream: Stream, kind: Any) -> Any:
    message = await stream.hear(kind | ErrorMessage)
    if not isinstance(message, ErrorMessage):
        return message
    error = message.error()
    if isinstance(error, Unavailable):
        raise error
    raise Refused(f"the peer refuses: {error}")


@contextmanager
def _deadline(peer: PeerId) -> Iterator[None]:
    try:
        with trio.fail_after(DEADLINE):
            yield
    except trio.TooSlowError as error:
        raise Unavailable(f"{peer} did not finish admission in {DEADLINE:g} s") from error
