"""What a peer must prove before anything is answered, and what it may then do.

Both sides prove, in turn, that they are members: a credential, and a signature by the node's
own key over the mesh, both peer ids and both fresh nonces (specs/admission/README.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from p2p_mesh.core.invite import Credential, Invite, Member, check, check_invite
from p2p_mesh.core.names import MeshId, PeerId, public_key
from p2p_mesh.core.records import Record, Role, ShortText
from p2p_mesh.core.revocation import NOTHING, Revoked
from p2p_mesh.core.signature import Signature, Signed, sign, verify
from p2p_mesh.core.wire import Message, encode
from p2p_mesh.errors import Refused

VERSION = 1

Topic = Literal["inventory", "demand", "blackboard", "revocation"]

# Role × protocol and role × topic (specs/admission/README.md, "What a role may do").
_CLIENT_PROTOCOLS = frozenset({"inventory", "inference", "health"})
_PUBLISHES: dict[Role, frozenset[Topic]] = {
    "member": frozenset({"inventory", "demand", "blackboard", "revocation"}),
    # A revocation proves itself, whoever passes it on.
    "client": frozenset({"demand", "blackboard", "revocation"}),
}

Nonce = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    version: int
    mesh: ShortText
    nonce: Nonce
    revocation: Annotated[bytes, Meta(max_length=16)] = b""
    """Which revocation this node has: the first 16 bytes of its SHA-256; none: none."""


class Proof(Message, frozen=True, kw_only=True, tag="proof"):
    credential: Credential
    signature: Signature
    revocation: Signed | None = None
    """What this node has, where the other side's hello named another."""


class Redeem(Message, frozen=True, kw_only=True, tag="redeem"):
    """Asks a holder of the mesh key for a membership, instead of proving one."""

    invite: Signed
    signature: Signature
    """By the invite's key, over the transcript: the asker has the token."""


class Redeemed(Message, frozen=True, kw_only=True, tag="redeemed"):
    credential: Credential


class Revocation(Message, frozen=True, kw_only=True, tag="revoked"):
    """Ends a handshake like an error, and proves that the other side is out."""

    revocation: Signed


class Transcript(Record, frozen=True, kw_only=True):
    """What a proof signs: who proves membership of what, to whom, this time."""

    mesh: str
    prover: str
    verifier: str
    prover_nonce: bytes
    verifier_nonce: bytes


def may_open(role: Role, protocol: str) -> bool:
    """Whether a peer of that role may open streams of a protocol: a member of every one, also
    those that backends bring; a client of those that asking takes.
    """
    return role == "member" or protocol in _CLIENT_PROTOCOLS


def may_publish(role: Role, topic: str) -> bool:
    """Whether a peer of that role may publish to a topic; plugins' topics are for members."""
    return topic in _PUBLISHES[role] or (role == "member" and topic.startswith("plugin/"))


def prove(
    transcript: Transcript,
    credential: Credential,
    key: Ed25519PrivateKey,
    revocation: Signed | None = None,
) -> Proof:
    signed = sign("admission", encode(transcript), key)
    return Proof(credential=credential, signature=signed.signature, revocation=revocation)


def check_hello(hello: Hello, mesh: MeshId) -> None:
    """Raises Refused where the peer is of another version or another mesh."""
    if hello.version != VERSION:
        raise Refused(f"the peer speaks admission version {hello.version}, this node {VERSION}")
    if hello.mesh != mesh:
        raise Refused("the peer is of another mesh")


def check_proof(
    proof: Proof, transcript: Transcript, mesh_key: bytes, now: float, revoked: Revoked = NOTHING
) -> Member:
    """The member at the other end. Raises Refused, also for a credential that is borrowed."""
    prover = PeerId(transcript.prover)
    member = check(proof.credential, mesh_key, now)
    if member.peer != prover:
        raise Refused("the credential belongs to another node", reason="borrowed")
    signed = Signed(payload=encode(transcript), signature=proof.signature)
    verify("admission", signed, public_key(prover))
    # Last: whoever is told of its revocation has proved that it is the one revoked.
    return check(proof.credential, mesh_key, now, revoked) if revoked.version else member


def ask_redeem(transcript: Transcript, invite: Signed, seed: bytes) -> Redeem:
    signed = sign("redeem", encode(transcript), Ed25519PrivateKey.from_private_bytes(seed))
    return Redeem(invite=invite, signature=signed.signature)


def check_redeem(
    redeem: Redeem, transcript: Transcript, mesh_key: bytes, revoked: Revoked = NOTHING
) -> Invite:
    """The invite that the other end has the token of. Raises RemoteError."""
    invite = check_invite(redeem.invite, mesh_key)
    verify("redeem", Signed(payload=encode(transcript), signature=redeem.signature), invite.key)
    if not invite.is_redeemed:
        raise Refused("the invite is none that is redeemed")
    if revoked.is_shut(invite.key):
        raise Refused("the invite was revoked", reason="revoked")
    return invite
