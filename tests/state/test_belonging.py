"""Which mesh a node belongs to."""

from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.invite import check, found, make_invite, read_token, redeemed
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import LocalError, Refused, SettingsError

NODE = public_bytes(Ed25519PrivateKey.from_private_bytes(b"n" * 32))
GUEST = public_bytes(Ed25519PrivateKey.from_private_bytes(b"g" * 32))
NOW = 1_000_000.0
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_first_start_founds_a_mesh(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    assert mode(tmp_path / "mesh.key") == mode(tmp_path / "mesh") == 0o600
    assert check(mine.credential, mine.mesh, 0.0).role == "member"
    assert state.belong(tmp_path, (), NODE, "home", now=NOW) == mine


def test_token_leads_into_its_mesh_and_is_remembered(tmp_path: Path) -> None:
    founder, guest = tmp_path / "founder", tmp_path / "guest"
    founder.mkdir()
    guest.mkdir()
    mine = state.belong(founder, (), NODE, "home", now=NOW)
    token = state.Inviter(founder, mine, lambda: NOW).standing(("/ip4/1.2.3.4/tcp/1/p2p/x",))
    assert token is not None
    joined = state.belong(guest, (read_token(token),), GUEST, "ignored", now=NOW)
    assert (joined.mesh, joined.name) == (mine.mesh, "home")
    assert joined.seeds == ("/ip4/1.2.3.4/tcp/1/p2p/x",)
    assert state.belong(guest, (), GUEST, "ignored", now=NOW) == joined
    assert state.Inviter(guest, joined, lambda: NOW).standing(()) is None


def test_expired_token_leaves_the_old_membership(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    (tmp_path / "other").mkdir()
    theirs = state.belong(tmp_path / "other", (), GUEST, "other", now=NOW)
    expired = state.Inviter(tmp_path / "other", theirs, lambda: NOW).make(
        (), "member", int(NOW) - 1
    )
    with pytest.raises(Refused, match="has ended"):
        state.belong(tmp_path, (read_token(expired),), NODE, "home", now=NOW)
    assert state.belong(tmp_path, (), NODE, "home", now=NOW) == mine


def test_tokens_of_two_meshes_are_refused(tmp_path: Path) -> None:
    tickets = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mine = state.belong(tmp_path / name, (), NODE, name, now=NOW)
        tickets.append(
            read_token(state.Inviter(tmp_path / name, mine, lambda: NOW).make((), "member", None))
        )
    with pytest.raises(SettingsError, match="different meshes"):
        state.belong(tmp_path, tuple(tickets), GUEST, "x", now=NOW)


def test_new_identity_needs_a_new_membership(tmp_path: Path) -> None:
    before = state.belong(tmp_path, (), NODE, "home", now=NOW)
    after = state.belong(tmp_path, (), GUEST, "home", now=NOW)
    assert after.mesh == before.mesh  # the mesh key is still here
    assert after.credential != before.credential


@pytest.mark.parametrize("name", ["mesh", "mesh.key"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    state.belong(tmp_path, (), NODE, "home", now=NOW)
    (tmp_path / name).write_bytes(b"\xc1damaged")
    with pytest.raises(SettingsError, match=name):
        state.Inviter(tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW), lambda: NOW)


def test_token_of_a_known_mesh_keeps_its_port(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other"))
    there = state.belong(tmp_path, (ticket,), NODE, "x", now=NOW)
    state.remember(tmp_path, msgspec.structs.replace(there, port=4001))
    third = read_token(make_invite(Ed25519PrivateKey.generate(), b"i" * 32, name="third"))
    assert state.belong(tmp_path, (third,), NODE, "x", now=NOW).port == 0
    assert state.belong(tmp_path, (ticket,), NODE, "x", now=NOW).port == 4001


def test_new_identity_is_a_member_again_by_its_token(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", seeds=("/ip4/1.1.1.1",)))
    state.belong(tmp_path, (ticket,), NODE, "x", now=NOW)
    again = state.belong(tmp_path, (), GUEST, "x", now=NOW)
    assert (again.name, again.seeds) == ("other", ("/ip4/1.1.1.1",))
    assert again.membership.peer == GUEST


def test_new_identity_by_no_token_and_no_key_founds_a_mesh(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", uses=1))
    credential = redeemed(OTHER_KEY, ticket.invite, NODE)
    state.belong(tmp_path, (ticket,), NODE, "x", now=NOW, credential=credential)
    assert state.belong(tmp_path, (), GUEST, "mine", now=NOW).name == "mine"


def test_token_is_redeemed_once_and_kept(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", uses=1))
    assert state.awaiting(tmp_path, (ticket,), NODE) == ticket
    credential = redeemed(OTHER_KEY, ticket.invite, NODE)
    there = state.belong(tmp_path, (ticket,), NODE, "x", now=NOW, credential=credential)
    assert there.token_seed == b""
    assert state.awaiting(tmp_path, (ticket,), NODE) is None
    assert state.awaiting(tmp_path, (ticket,), GUEST) == ticket
    assert state.belong(tmp_path, (ticket,), NODE, "x", now=NOW) == there
    assert state.belong(tmp_path, (), NODE, "x", now=NOW) == there


def test_other_invite_of_the_same_mesh_is_redeemed_too(tmp_path: Path) -> None:
    state.belong(
        tmp_path, (read_token(make_invite(OTHER_KEY, b"j" * 32, name="x")),), NODE, "x", now=NOW
    )
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", uses=1))
    assert state.awaiting(tmp_path, (ticket,), NODE) == ticket


def test_plain_token_is_not_redeemed(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other"))
    assert state.awaiting(tmp_path, (ticket,), NODE) is None
    assert state.awaiting(tmp_path, (), NODE) is None


def test_meshes_are_remembered_and_chosen(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other"))
    other = state.belong(tmp_path, (ticket,), NODE, "x", now=NOW)
    assert state.meshes(tmp_path) == (other, mine)
    assert mode(tmp_path / "meshes" / mine.id / "mesh") == 0o600
    for name in ("home", mine.id, mine.id[:6]):
        assert state.choose(tmp_path, name) == mine
        assert state.belong(tmp_path, (), NODE, "x", now=NOW) == mine
        state.choose(tmp_path, "other")


def test_mesh_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="none of the meshes that this node knows: none"):
        state.choose(tmp_path, "home")
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    with pytest.raises(LocalError, match=f"home .{mine.id}"):
        state.choose(tmp_path, mine.id[:3])


def test_name_of_two_meshes_chooses_none(tmp_path: Path) -> None:
    for key in (OTHER_KEY, Ed25519PrivateKey.from_private_bytes(b"p" * 32)):
        ticket = read_token(make_invite(key, b"i" * 32, name="same"))
        state.belong(tmp_path, (ticket,), NODE, "x", now=NOW)
    with pytest.raises(LocalError, match="more than one"):
        state.choose(tmp_path, "same")


def test_mesh_of_an_older_version_is_not_lost(tmp_path: Path) -> None:
    belonging = state.Belonging(
        mesh=public_bytes(OTHER_KEY), name="old", credential=found(OTHER_KEY, NODE)
    )
    (tmp_path / "mesh").write_bytes(msgspec.msgpack.encode(belonging))
    ticket = read_token(make_invite(Ed25519PrivateKey.generate(), b"i" * 32, name="new"))
    state.belong(tmp_path, (ticket,), NODE, "x", now=NOW)
    assert state.choose(tmp_path, "old") == belonging
