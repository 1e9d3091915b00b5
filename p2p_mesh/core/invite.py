"""Who belongs to a mesh: invites, memberships, and the chain from one to the other.

A mesh is an Ed25519 key pair. An invite is signed by the mesh key and holds a key of its own;
whoever has that key's seed (it is in the token) signs memberships with it. So any member checks
a membership offline, and no server is asked. The format is specs/admission/README.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.names import MeshId, PeerId, mesh_id, peer_id
from p2p_mesh.core.records import Count, Record, Role, ShortText
from p2p_mesh.core.revocation import NOTHING, Revoked
from p2p_mesh.core.signature import Key, Signed, public_bytes, sign, verify
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import Refused, RemoteError, SettingsError

TOKEN_PREFIX = "mn1_"
MAX_TOKEN = 16_384
MAX_SEEDS = 32

MAX_USES = 1024
"""Peers that come in by one invite, where holders of the mesh key count them."""


class Invite(Record, frozen=True, kw_only=True):
    mesh: Key
    """The mesh's public key."""
    name: ShortText
    key: Key
    """The public key that memberships from this invite are signed with."""
    role: Role = "member"
    until: Count | None = None
    """Unix seconds when memberships from it end; None: never."""
    seeds: Annotated[tuple[ShortText, ...], Meta(max_length=MAX_SEEDS)] = ()
    """Multiaddrs with peer id, where to knock first."""
    uses: Annotated[int, Meta(ge=1, le=MAX_USES)] | None = None
    """How many peers come in by it at most; None: any number."""
    join_by: Count | None = None
    """Unix seconds until when peers come in by it; None: for as long as it is good."""

    @property
    def is_redeemed(self) -> bool:
        """Nobody can count or date offline, so a holder of the mesh key does both, and signs."""
        return self.uses is not None or self.join_by is not None


class Membership(Record, frozen=True, kw_only=True):
    peer: Key
    """The public key of the node."""
    role: Role
    until: Count | None = None
    invite: Key | None = None
    """The key of the invite that it was redeemed by, where the mesh key signed it."""


class Credential(Record, frozen=True, kw_only=True):
    """A membership and, unless the mesh key itself signed it, the invite that it came by."""

    membership: Signed
    invite: Signed | None = None


class Envelope(Record, frozen=True, kw_only=True):
    """Something that a member says to all: it proves itself, whoever passes it on."""

    author: Key
    body: Signed
    credential: Credential


class _Token(Record, frozen=True, kw_only=True):
    invite: Signed
    seed: Key


@dataclass(frozen=True, slots=True)
class Member:
    """What a checked credential says."""

    peer: PeerId
    role: Role
    until: int | None
    invite: bytes | None = None
    """The key of the invite that it came by; None: of none."""
    redeemed: bool = False
    """A holder of the mesh key let it in by that invite; else it had the token alone."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A token, opened: what `--join` was given."""

    invite: Invite
    signed: Signed
    seed: bytes

    @property
    def mesh(self) -> MeshId:
        return mesh_id(self.invite.mesh)


def invite_id(key: bytes) -> str:
    """What people call an invite: 12 hexadecimal digits, from its public key."""
    return hashlib.sha256(b"meshnode/invite/1\0" + key).hexdigest()[:12]


def make_invite(
    mesh_key: Ed25519PrivateKey,
    seed: bytes,
    *,
    name: str,
    role: Role = "member",
    until: int | None = None,
    seeds: tuple[str, ...] = (),
    uses: int | None = None,
    join_by: int | None = None,
) -> str:
    """The token of a new invite; `seed` is 32 fresh random bytes, its private key."""
    invite = Invite(
        mesh=public_bytes(mesh_key),
        name=name,
        key=public_bytes(Ed25519PrivateKey.from_private_bytes(seed)),
        role=role,
        until=until,
        seeds=seeds,
        uses=uses,
        join_by=join_by,
    )
    token = _Token(invite=sign("invite", encode(invite), mesh_key), seed=seed)
    return TOKEN_PREFIX + base64.urlsafe_b64encode(encode(token)).decode().rstrip("=")


def read_token(text: str) -> Ticket:
    """A token, checked as far as it proves itself. Raises SettingsError."""
    try:
        return _open_token(text.strip())
    except (RemoteError, ValueError, binascii.Error) as error:
        raise SettingsError(
            "this is no invite of a mesh, or part of it is missing: copy the whole token "
            f"(it starts with {TOKEN_PREFIX})"
        ) from error


def _open_token(text: str) -> Ticket:
    if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN:
        raise ValueError("no token")
    body = text[len(TOKEN_PREFIX) :]
    raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    token: _Token = decode(raw, _Token)
    invite: Invite = decode(token.invite.payload, Invite)
    verify("invite", token.invite, invite.mesh)
    if public_bytes(Ed25519PrivateKey.from_private_bytes(token.seed)) != invite.key:
        raise ValueError("the seed is of another invite")
    return Ticket(invite, token.invite, token.seed)


def join(ticket: Ticket, peer: bytes) -> Credential:
    """The membership of the node with the public key `peer`, by a token."""
    invite = ticket.invite
    membership = Membership(peer=peer, role=invite.role, until=invite.until)
    key = Ed25519PrivateKey.from_private_bytes(ticket.seed)
    return Credential(membership=sign("membership", encode(membership), key), invite=ticket.signed)


def redeemed(mesh_key: Ed25519PrivateKey, invite: Invite, peer: bytes) -> Credential:
    """The membership that a holder of the mesh key gives for an invite that is redeemed."""
    membership = Membership(peer=peer, role=invite.role, until=invite.until, invite=invite.key)
    return Credential(membership=sign("membership", encode(membership), mesh_key))


def found(mesh_key: Ed25519PrivateKey, peer: bytes) -> Credential:
    """The membership of a node that holds the mesh key."""
    membership = Membership(peer=peer, role="member")
    return Credential(membership=sign("membership", encode(membership), mesh_key))


def check(credential: Credential, mesh: bytes, now: float, revoked: Revoked = NOTHING) -> Member:
    """What a credential proves towards the mesh with the public key `mesh`. Raises Refused.

    An invite binds what it can give: its role, and its end. A membership may claim less.
    """
    member = _member_by(credential, mesh)
    if member.until is not None and member.until <= now:
        raise Refused("the membership has ended; ask for a new invite", reason="expired")
    if revoked.is_revoked(member):
        raise Refused("the membership was revoked; ask for a new invite", reason="revoked")
    return member


def _member_by(credential: Credential, mesh: bytes) -> Member:
    if credential.invite is None:
        membership: Membership = decode(
            verify("membership", credential.membership, mesh), Membership
        )
        return _member(membership, None)
    invite = check_invite(credential.invite, mesh)
    membership = decode(verify("membership", credential.membership, invite.key), Membership)
    if invite.is_redeemed:
        raise Refused("the invite must be redeemed at a node with the mesh key", reason="forged")
    if invite.role == "client" and membership.role != "client":
        raise Refused("the membership claims a role that its invite does not give", reason="forged")
    return _member(membership, invite)


def _member(membership: Membership, invite: Invite | None) -> Member:
    peer, role = peer_id(membership.peer), membership.role
    if invite is None:
        key = membership.invite
        return Member(peer, role, membership.until, invite=key, redeemed=key is not None)
    return Member(peer, role, _earlier(invite.until, membership.until), invite=invite.key)


def seal(kind: str, payload: bytes, key: Ed25519PrivateKey, credential: Credential) -> bytes:
    """The payload as its author says it to all; `kind` is what the signature covers with it."""
    body = sign(kind, payload, key)
    return encode(Envelope(author=public_bytes(key), body=body, credential=credential))


def unseal(
    kind: str, envelope: bytes, mesh: bytes, now: float, revoked: Revoked = NOTHING
) -> tuple[Member, bytes]:
    """Who says it, and the payload, both checked. Raises RemoteError."""
    sealed: Envelope = decode(envelope, Envelope)
    member = check(sealed.credential, mesh, now, revoked)
    if member.peer != peer_id(sealed.author):
        raise Refused(f"the {kind} comes with the credential of another node", reason="borrowed")
    return member, verify(kind, sealed.body, sealed.author)


def author_of(envelope: bytes) -> Member:
    """Who sealed an envelope that was checked when it came. Raises RemoteError."""
    credential: Credential = decode(envelope, Envelope).credential
    invite = decode(credential.invite.payload, Invite) if credential.invite else None
    return _member(decode(credential.membership.payload, Membership), invite)


def check_invite(signed: Signed, mesh: bytes) -> Invite:
    """The invite, if the mesh with that public key made it. Raises RemoteError."""
    invite: Invite = decode(verify("invite", signed, mesh), Invite)
    if invite.mesh != mesh:
        raise Refused("the invite is for another mesh", reason="forged")
    return invite


def _earlier(first: int | None, second: int | None) -> int | None:
    ends = [end for end in (first, second) if end is not None]
    return min(ends, default=None)
