"""The proof that both sides give, and the table of roles."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.admission import (
    Hello,
    Transcript,
    ask_redeem,
    check_hello,
    check_proof,
    check_redeem,
    may_open,
    may_publish,
    prove,
)
from p2p_mesh.core.invite import found, make_invite, read_token
from p2p_mesh.core.names import mesh_id, peer_id
from p2p_mesh.core.records import Role
from p2p_mesh.core.revocation import NOTHING, revoke_invite, revoke_peer
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import Refused

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)
KEY = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
TRANSCRIPT = Transcript(
    mesh=mesh_id(MESH),
    prover=peer_id(public_bytes(KEY)),
    verifier=peer_id(public_bytes(OTHER)),
    prover_nonce=b"p" * 32,
    verifier_nonce=b"v" * 32,
)
CREDENTIAL = found(MESH_KEY, public_bytes(KEY))


def test_member_is_admitted() -> None:
    member = check_proof(prove(TRANSCRIPT, CREDENTIAL, KEY), TRANSCRIPT, MESH, now=0.0)
    assert member.peer == TRANSCRIPT.prover


@pytest.mark.parametrize("field", ["mesh", "verifier", "prover_nonce", "verifier_nonce"])
def test_replayed_proof_is_refused(field: str) -> None:
    proof = prove(TRANSCRIPT, CREDENTIAL, KEY)
    value = b"x" * 32 if field.endswith("nonce") else peer_id(b"x" * 32)
    elsewhere = msgspec.structs.replace(TRANSCRIPT, **{field: value})
    with pytest.raises(Refused, match="signature of the admission"):
        check_proof(proof, elsewhere, MESH, now=0.0)


def test_borrowed_credential_is_refused() -> None:
    borrower = msgspec.structs.replace(TRANSCRIPT, prover=peer_id(public_bytes(OTHER)))
    with pytest.raises(Refused, match="belongs to another node"):
        check_proof(prove(borrower, CREDENTIAL, OTHER), borrower, MESH, now=0.0)


def test_other_mesh_and_other_version_are_refused_by_name() -> None:
    mesh = mesh_id(MESH)
    check_hello(Hello(version=1, mesh=mesh, nonce=bytes(32)), mesh)
    with pytest.raises(Refused, match="another mesh"):
        check_hello(Hello(version=1, mesh="0" * 32, nonce=bytes(32)), mesh)
    with pytest.raises(Refused, match="version 2, this node 1"):
        check_hello(Hello(version=2, mesh=mesh, nonce=bytes(32)), mesh)


def test_client_asks_and_does_not_announce() -> None:
    assert may_open("client", "inference")
    assert may_open("client", "inventory")
    assert not may_open("client", "stage")
    assert may_publish("client", "blackboard")
    assert not may_publish("client", "inventory")
    assert not may_publish("client", "plugin/x")


def test_member_announces() -> None:
    assert may_open("member", "stage")
    assert may_publish("member", "inventory")
    assert may_publish("member", "plugin/x")
    assert not may_publish("member", "anything")


TOKEN = make_invite(MESH_KEY, b"i" * 32, name="home", uses=1)


def test_redeem_shows_the_token() -> None:
    ticket = read_token(TOKEN)
    redeem = ask_redeem(TRANSCRIPT, ticket.signed, ticket.seed)
    assert check_redeem(redeem, TRANSCRIPT, MESH) == ticket.invite


def test_redeem_without_the_seed_is_refused() -> None:
    redeem = ask_redeem(TRANSCRIPT, read_token(TOKEN).signed, b"x" * 32)
    with pytest.raises(Refused, match="signature of the redeem"):
        check_redeem(redeem, TRANSCRIPT, MESH)


def test_replayed_redeem_is_refused() -> None:
    ticket = read_token(TOKEN)
    redeem = ask_redeem(TRANSCRIPT, ticket.signed, ticket.seed)
    elsewhere = msgspec.structs.replace(TRANSCRIPT, verifier_nonce=b"x" * 32)
    with pytest.raises(Refused, match="signature of the redeem"):
        check_redeem(redeem, elsewhere, MESH)


def test_invite_of_another_mesh_is_not_redeemed() -> None:
    ticket = read_token(make_invite(OTHER, b"i" * 32, name="x", uses=1))
    redeem = ask_redeem(TRANSCRIPT, ticket.signed, ticket.seed)
    with pytest.raises(Refused, match="signature of the invite"):
        check_redeem(redeem, TRANSCRIPT, MESH)


def test_plain_and_revoked_invites_are_not_redeemed() -> None:
    plain = read_token(make_invite(MESH_KEY, b"i" * 32, name="home"))
    with pytest.raises(Refused, match="none that is redeemed"):
        check_redeem(ask_redeem(TRANSCRIPT, plain.signed, plain.seed), TRANSCRIPT, MESH)
    ticket = read_token(TOKEN)
    redeem = ask_redeem(TRANSCRIPT, ticket.signed, ticket.seed)
    with pytest.raises(Refused, match="invite was revoked"):
        check_redeem(redeem, TRANSCRIPT, MESH, revoke_invite(NOTHING, ticket.invite.key))


def test_only_the_revoked_node_itself_is_told_so() -> None:
    revoked = revoke_peer(NOTHING, public_bytes(KEY), None, [])
    with pytest.raises(Refused, match="was revoked"):
        check_proof(prove(TRANSCRIPT, CREDENTIAL, KEY), TRANSCRIPT, MESH, 0.0, revoked)
    with pytest.raises(Refused, match="signature of the admission"):
        check_proof(prove(TRANSCRIPT, CREDENTIAL, OTHER), TRANSCRIPT, MESH, 0.0, revoked)


@pytest.mark.parametrize("role", ["member", "client"])
def test_everybody_passes_revocations_on(role: Role) -> None:
    assert may_publish(role, "revocation")
