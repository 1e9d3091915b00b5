"""Who belongs to a mesh: invites, memberships, and the chain from one to the other.

A mesh is an Ed25519 key pair. An invite is signed by the mesh key and holds a key of its own;
whoever has that key's seed (it is in the token) signs memberships with it. So any member checks
a membership offline, and no server is asked. The format is specs/admission/README.md.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from p2p_mesh.core.names import MeshId, PeerId, mesh_id, peer_id
from p2p_mesh.core.records import Count, Record, Role, ShortText
from p2p_mesh.core.wire import ADMISSION_LIMIT, decode, encode
from p2p_mesh.errors import Refused, RemoteError, SettingsError

TOKEN_PREFIX = "mn1_"
MAX_TOKEN = 16_384
MAX_SEEDS = 32

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]


class Signed(Record, frozen=True, kw_only=True):
    """Bytes and a signature over `meshnode/<kind>/1`, a zero byte, and exactly those bytes.
    They travel as bytes and are never encoded again.
    """

    payload: Annotated[bytes, Meta(max_length=ADMISSION_LIMIT)]
    signature: Signature


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


class Membership(Record, frozen=True, kw_only=True):
    peer: Key
    """The public key of the node."""
    role: Role
    until: Count | None = None


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


@dataclass(frozen=True, slots=True)
class Ticket:
    """A token, opened: what `--join` was given."""

    invite: Invite
    signed: Signed
    seed: bytes

    @property
    def mesh(self) -> MeshId:
        return mesh_id(self.invite.mesh)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def sign(kind: str, payload: bytes, key: Ed25519PrivateKey) -> Signed:
    return Signed(payload=payload, signature=key.sign(_covered(kind, payload)))


def verify(kind: str, signed: Signed, key: bytes) -> bytes:
    """The payload, if `key` signed it. Raises Refused."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            signed.signature, _covered(kind, signed.payload)
        )
    except (InvalidSignature, ValueError) as error:
        raise Refused(f"the signature of the {kind} is not from the key it names") from error
    return signed.payload


def _covered(kind: str, payload: bytes) -> bytes:
    return f"meshnode/{kind}/1".encode() + b"\0" + payload


def make_invite(
    mesh_key: Ed25519PrivateKey,
    seed: bytes,
    *,
    name: str,
    role: Role = "member",
    until: int | None = None,
    seeds: tuple[str, ...] = (),
) -> str:
    """The token of a new invite; `seed` is 32 fresh random bytes, its private key."""
    invite = Invite(
        mesh=public_bytes(mesh_key),
        name=name,
        key=public_bytes(Ed25519PrivateKey.from_private_bytes(seed)),
        role=role,
        until=until,
        seeds=seeds,
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


def found(mesh_key: Ed25519PrivateKey, peer: bytes) -> Credential:
    """The membership of a node that holds the mesh key."""
    membership = Membership(peer=peer, role="member")
    return Credential(membership=sign("membership", encode(membership), mesh_key))


def check(credential: Credential, mesh: bytes, now: float) -> Member:
    """What a credential proves towards the mesh with the public key `mesh`. Raises Refused.

    An invite binds what it can give: its role, and its end. A membership may claim less.
    """
    invite = _check_invite(credential.invite, mesh) if credential.invite else None
    payload = verify("membership", credential.membership, invite.key if invite else mesh)
    membership: Membership = decode(payload, Membership)
    until = membership.until
    if invite is not None:
        if invite.role == "client" and membership.role != "client":
            raise Refused("the membership claims a role that its invite does not give")
        until = _earlier(invite.until, until)
    if until is not None and until <= now:
        raise Refused("the membership has ended; ask for a new invite")
    return Member(peer_id(membership.peer), membership.role, until)


def seal(kind: str, payload: bytes, key: Ed25519PrivateKey, credential: Credential) -> bytes:
    """The payload as its author says it to all; `kind` is what the signature covers with it."""
    body = sign(kind, payload, key)
    return encode(Envelope(author=public_bytes(key), body=body, credential=credential))


def unseal(kind: str, envelope: bytes, mesh: bytes, now: float) -> tuple[Member, bytes]:
    """Who says it, and the payload, both checked. Raises RemoteError."""
    sealed: Envelope = decode(envelope, Envelope)
    member = check(sealed.credential, mesh, now)
    if member.peer != peer_id(sealed.author):
        raise Refused(f"the {kind} comes with the credential of another node")
    return member, verify(kind, sealed.body, sealed.author)


def _check_invite(signed: Signed, mesh: bytes) -> Invite:
    invite: Invite = decode(verify("invite", signed, mesh), Invite)
    if invite.mesh != mesh:
        raise Refused("the invite is for another mesh")
    return invite


def _earlier(first: int | None, second: int | None) -> int | None:
    ends = [end for end in (first, second) if end is not None]
    return min(ends, default=None)
