"""Who is out: the mesh's list of revoked peers and invites, and how two lists become one.

The mesh key signs the list, and of two lists the newest holds. Whoever holds the mesh key never
drops an entry, so what two holders revoked at once is joined (specs/admission/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.names import public_key
from p2p_mesh.core.records import Count, Record
from p2p_mesh.core.signature import Key, Signed, sign, verify
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import LocalError, RemoteError

if TYPE_CHECKING:
    from p2p_mesh.core.invite import Member

KIND = "revocation"
MAX_REVOKED = 384
"""Peers, and as many invites. With all of them, a list and a credential fit into one frame."""

MAX_CLOSED = 160
MAX_KEPT = 512
"""Peers that stay by closed invites, of all of them together."""


class Closed(Record, frozen=True, kw_only=True):
    """An invite that lets nobody in any more: by it came a peer that was revoked."""

    invite: Key
    kept: Annotated[tuple[Key, ...], Meta(max_length=MAX_KEPT)] = ()
    """The public keys of those that came by it and stay."""


class Revoked(Record, frozen=True, kw_only=True):
    """Everything that was taken back in a mesh, as of one version."""

    version: Count = 0
    peers: Annotated[tuple[Key, ...], Meta(max_length=MAX_REVOKED)] = ()
    invites: Annotated[tuple[Key, ...], Meta(max_length=MAX_REVOKED)] = ()
    """All that came by one of these is out."""
    closed: Annotated[tuple[Closed, ...], Meta(max_length=MAX_CLOSED)] = ()

    def is_revoked(self, member: Member) -> bool:
        """Whether a member, whose credential is good otherwise, is out."""
        if not (self.peers or self.invites or self.closed):
            return False
        key = public_key(member.peer)
        if key in self.peers or member.invite in self.invites:
            return True
        # The mesh key itself signed a redeemed membership, so it was made before the invite was
        # closed. One that was made with the token shows no time, so those that stay are named.
        return not member.redeemed and any(
            one.invite == member.invite and key not in one.kept for one in self.closed
        )

    def is_shut(self, invite: bytes) -> bool:
        """Whether nobody new comes in by an invite."""
        return invite in self.invites or any(one.invite == invite for one in self.closed)


NOTHING = Revoked()


def read_revocation(signed: Signed, mesh: bytes) -> Revoked:
    """The list, checked. Raises RemoteError."""
    revoked: Revoked = decode(verify(KIND, signed, mesh), Revoked)
    if sum(len(one.kept) for one in revoked.closed) > MAX_KEPT:
        raise RemoteError(f"a revocation that keeps more than {MAX_KEPT} peers")
    return revoked


def seal_revocation(revoked: Revoked, mesh_key: Ed25519PrivateKey) -> Signed:
    """The list, signed. Raises LocalError where it holds more than a list may."""
    signed = sign(KIND, encode(revoked), mesh_key)
    try:
        read_revocation(signed, mesh_key.public_key().public_bytes_raw())
    except RemoteError as error:
        raise LocalError(
            f"a list of revocations holds at most {MAX_REVOKED} peers, {MAX_REVOKED} invites, and "
            f"{MAX_KEPT} peers that stay by closed invites: revoke a whole invite instead"
        ) from error
    return signed


def is_newer(revoked: Revoked, than: Revoked) -> bool:
    """Bytes break the tie of two holders that revoked at once: all nodes then keep the same."""
    return (revoked.version, encode(revoked)) > (than.version, encode(than))


def revoke_invite(revoked: Revoked, invite: bytes) -> Revoked:
    """The next list, by which all that came by `invite` are out."""
    return _next(revoked, Revoked(invites=(invite,)))


def revoke_peer(
    revoked: Revoked, peer: bytes, invite: bytes | None, kept: Iterable[bytes]
) -> Revoked:
    """The next list, by which a peer is out, and `invite`, which it came by with the token alone,
    lets nobody in but `kept`, who are in by it.
    """
    stay = tuple(sorted(set(kept) - {peer}))
    is_open = invite is not None and not revoked.is_shut(invite)
    closed = (Closed(invite=invite, kept=stay),) if invite is not None and is_open else ()
    return _next(revoked, Revoked(peers=(peer,), closed=closed))


def _next(revoked: Revoked, more: Revoked) -> Revoked:
    return msgspec.structs.replace(_union(revoked, more), version=revoked.version + 1)


def merge(first: Revoked, second: Revoked) -> Revoked:
    """All that either list takes back: the one that has it all, or else a newer one."""
    union = _union(first, second)
    newest, other = (first, second) if is_newer(first, second) else (second, first)
    if _union(newest, NOTHING) == msgspec.structs.replace(union, version=newest.version):
        return newest
    return msgspec.structs.replace(union, version=max(newest.version, other.version) + 1)


def _union(first: Revoked, second: Revoked) -> Revoked:
    """In one order, so that two holders make the same bytes of it."""
    invites = set(first.invites) | set(second.invites)
    kept: dict[bytes, set[bytes]] = {}
    for one in (*first.closed, *second.closed):
        if one.invite not in invites:  # the stricter word holds
            kept.setdefault(one.invite, set()).update(one.kept)
    return Revoked(
        version=max(first.version, second.version),
        peers=tuple(sorted(set(first.peers) | set(second.peers))),
        invites=tuple(sorted(invites)),
        closed=tuple(
            Closed(invite=invite, kept=tuple(sorted(kept[invite]))) for invite in sorted(kept)
        ),
    )
