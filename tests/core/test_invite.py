"""Invites, memberships, tokens."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core import invite as module
from p2p_mesh.core.invite import (
    Credential,
    Invite,
    Membership,
    author_of,
    check,
    found,
    invite_id,
    join,
    make_invite,
    read_token,
    redeemed,
    seal,
    unseal,
)
from p2p_mesh.core.names import mesh_id, peer_id
from p2p_mesh.core.records import Role
from p2p_mesh.core.revocation import NOTHING, revoke_invite, revoke_peer
from p2p_mesh.core.signature import Signed, public_bytes, sign
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import Refused, SettingsError

MESH_KEY = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
MESH = public_bytes(MESH_KEY)
NODE = public_bytes(Ed25519PrivateKey.from_private_bytes(b"n" * 32))
SEED = b"i" * 32
NOW = 1_000_000.0


def token(role: Role = "member", until: int | None = None) -> str:
    seeds = ("/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A",)
    return make_invite(MESH_KEY, SEED, name="home", role=role, until=until, seeds=seeds)


def test_token_says_where_to_knock() -> None:
    ticket = read_token(f"  {token()}\n")
    assert ticket.mesh == mesh_id(MESH)
    assert ticket.invite.name == "home"
    assert ticket.invite.seeds[0].startswith("/ip4/10.0.0.1/")


def test_joiner_is_a_member() -> None:
    member = check(join(read_token(token()), NODE), MESH, NOW)
    assert (member.peer, member.role, member.until) == (peer_id(NODE), "member", None)


def test_founder_is_a_member() -> None:
    assert check(found(MESH_KEY, NODE), MESH, NOW).peer == peer_id(NODE)


def test_role_and_end_come_from_the_invite() -> None:
    member = check(join(read_token(token("client", 1_000_010)), NODE), MESH, NOW)
    assert (member.role, member.until) == ("client", 1_000_010)


def test_membership_ends() -> None:
    with pytest.raises(Refused, match="has ended"):
        check(join(read_token(token(until=1_000_000)), NODE), MESH, NOW)


def test_membership_cannot_outlive_its_invite() -> None:
    ticket = read_token(token(until=1_000_000))
    forged = Membership(peer=NODE, role="member", until=2_000_000)
    with pytest.raises(Refused, match="has ended"):
        check(_signed(forged, SEED, ticket.signed), MESH, NOW)


def test_client_cannot_make_itself_a_member() -> None:
    ticket = read_token(token("client"))
    with pytest.raises(Refused, match="role"):
        check(_signed(Membership(peer=NODE, role="member"), SEED, ticket.signed), MESH, NOW)


def test_membership_signed_by_a_stranger_is_refused() -> None:
    ticket = read_token(token())
    with pytest.raises(Refused, match="signature of the membership"):
        check(_signed(Membership(peer=NODE, role="member"), b"s" * 32, ticket.signed), MESH, NOW)


def test_invite_of_another_mesh_is_refused() -> None:
    with pytest.raises(Refused, match="signature of the invite"):
        check(join(read_token(token()), NODE), public_bytes(Ed25519PrivateKey.generate()), NOW)


def test_invite_that_names_another_mesh_is_refused() -> None:
    other = Invite(mesh=NODE, name="x", key=NODE)
    credential = Credential(
        membership=sign("membership", b"", MESH_KEY), invite=sign("invite", encode(other), MESH_KEY)
    )
    with pytest.raises(Refused, match="another mesh"):
        check(credential, MESH, NOW)


def test_signature_over_another_kind_is_refused() -> None:
    membership = encode(Membership(peer=NODE, role="member"))
    with pytest.raises(Refused):
        check(Credential(membership=sign("invite", membership, MESH_KEY)), MESH, NOW)


@pytest.mark.parametrize(
    "text", ["", "hello", "mn1_", "mn1_!!!!", "mn1_AAAA", "mn1_" + "A" * 20_000]
)
def test_what_is_no_token_is_refused_in_words(text: str) -> None:
    with pytest.raises(SettingsError, match="copy the whole token"):
        read_token(text)


@given(st.data())
def test_damaged_token_is_refused(data: st.DataObject) -> None:
    whole = token()
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.sampled_from("abcXYZ019-_"))
    damaged = whole[:at] + other + whole[at + 1 :]
    try:
        ticket = read_token(damaged)
    except SettingsError:
        return
    assert ticket == read_token(whole)  # the bits that base64 leaves over at its end


def test_shortened_token_is_refused() -> None:
    for end in range(len(token())):
        with pytest.raises(SettingsError):
            read_token(token()[:end])


def test_token_with_the_seed_of_another_invite_is_refused() -> None:
    ticket = read_token(token())
    swapped = module._Token(invite=ticket.signed, seed=b"x" * 32)
    text = module.TOKEN_PREFIX + base64.urlsafe_b64encode(encode(swapped)).decode()
    with pytest.raises(SettingsError):
        read_token(text.rstrip("="))


def test_credential_survives_the_wire() -> None:
    credential = join(read_token(token()), NODE)
    assert decode(encode(credential), Credential) == credential


def _signed(membership: Membership, seed: bytes, invite: Signed) -> Credential:
    key = Ed25519PrivateKey.from_private_bytes(seed)
    return Credential(membership=sign("membership", encode(membership), key), invite=invite)


def limited(uses: int | None = None, join_by: int | None = None) -> str:
    return make_invite(MESH_KEY, SEED, name="home", uses=uses, join_by=join_by)


@pytest.mark.parametrize("limits", [{"uses": 1}, {"join_by": 2_000_000}])
def test_invite_with_limits_is_good_for_nothing_unredeemed(limits: dict[str, int]) -> None:
    ticket = read_token(limited(**limits))
    assert ticket.invite.is_redeemed
    with pytest.raises(Refused, match="must be redeemed"):
        check(join(ticket, NODE), MESH, NOW)


def test_redeemed_membership_names_its_invite() -> None:
    ticket = read_token(limited(uses=1))
    member = check(redeemed(MESH_KEY, ticket.invite, NODE), MESH, NOW)
    assert (member.peer, member.invite, member.redeemed) == (
        peer_id(NODE), ticket.invite.key, True,
    )  # fmt: skip
    assert redeemed(MESH_KEY, ticket.invite, NODE) == redeemed(MESH_KEY, ticket.invite, NODE)


def test_plain_invite_needs_no_redeeming() -> None:
    assert not read_token(token()).invite.is_redeemed


def test_member_by_a_token_cannot_name_another_invite() -> None:
    ticket = read_token(token())
    dodging = Membership(peer=NODE, role="member", invite=b"x" * 32)
    assert check(_signed(dodging, SEED, ticket.signed), MESH, NOW).invite == ticket.invite.key


def test_revoked_membership_is_refused_by_name() -> None:
    credential = join(read_token(token()), NODE)
    key = read_token(token()).invite.key
    for revoked in (revoke_peer(NOTHING, NODE, None, []), revoke_invite(NOTHING, key)):
        with pytest.raises(Refused, match="was revoked") as caught:
            check(credential, MESH, NOW, revoked)
        assert caught.value.reason == "revoked"


def test_envelope_of_a_revoked_author_is_refused() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    envelope = seal("note", b"x", key, found(MESH_KEY, NODE))
    assert unseal("note", envelope, MESH, NOW)[1] == b"x"
    with pytest.raises(Refused, match="was revoked"):
        unseal("note", envelope, MESH, NOW, revoke_peer(NOTHING, NODE, None, []))


def test_author_of_an_envelope_is_known_again() -> None:
    key = Ed25519PrivateKey.from_private_bytes(b"n" * 32)
    for credential in (found(MESH_KEY, NODE), join(read_token(token()), NODE)):
        assert author_of(seal("note", b"x", key, credential)) == check(credential, MESH, NOW)


def test_invite_is_called_by_twelve_digits() -> None:
    assert invite_id(NODE) == invite_id(NODE)
    assert len(invite_id(NODE)) == 12
    assert invite_id(NODE) != invite_id(MESH)
