"""A mesh that moves, and a node that becomes another."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.identity import pack, unpack
from p2p_mesh.core.invite import check, make_invite, read_token, redeemed
from p2p_mesh.core.names import MeshId, PeerId, peer_id
from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import LocalError, SettingsError

NOW = 1_000_000.0
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)


def node(path: Path, seed: bytes = b"n" * 32) -> bytes:
    """The public key of a node that has its key file there."""
    path.mkdir(exist_ok=True)
    (path / "node.key").write_bytes(pack(seed))
    return public_bytes(Ed25519PrivateKey.from_private_bytes(seed))


def key_of(path: Path) -> bytes:
    seed = unpack((path / "node.key").read_bytes())
    assert seed is not None
    return public_bytes(Ed25519PrivateKey.from_private_bytes(seed))


def test_mesh_moves_as_one_text(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    mine = state.belong(first, (), node(first), "home", now=NOW)
    state.remember_peers(first, mine.id, [(PeerId("p"), ["/ip4/1.1.1.1/tcp/1"])])
    text = state.export_mesh(first)
    assert text.startswith("mk1_")
    there = state.import_mesh(second, f" {text}\n")
    assert (there.mesh, there.name) == (mine.mesh, "home")
    assert there.seeds == ("/ip4/1.1.1.1/tcp/1/p2p/p",)
    again = state.belong(second, (), key_of(second), "x", now=NOW)
    assert again == there
    assert state.Inviter(second, again, lambda: NOW).is_holder
    assert (second / "mesh.key").stat().st_mode & 0o777 == 0o600


def test_member_becomes_a_holder_and_stays_who_it_is(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    mine = state.belong(first, (), node(first), "home", now=NOW)
    token = state.Inviter(first, mine, lambda: NOW).make(("/ip4/1.1.1.1",), "client", None)
    guest = node(second, b"g" * 32)
    state.belong(second, (read_token(token),), guest, "x", now=NOW)
    there = state.import_mesh(second, state.export_mesh(first))
    assert there.seeds == ("/ip4/1.1.1.1",)
    member = check(there.credential, there.mesh, NOW)
    assert (member.peer, member.role) == (peer_id(guest), "member")


def test_key_of_another_mesh_is_not_lost_unasked(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    state.belong(first, (), node(first), "home", now=NOW)
    theirs = state.belong(second, (), node(second), "theirs", now=NOW)
    text = state.export_mesh(first)
    with pytest.raises(LocalError, match="--replace"):
        state.import_mesh(second, text)
    assert state.meshes(second) == (theirs,)
    assert state.import_mesh(second, text, replace=True).name == "home"
    assert [one.name for one in state.meshes(second)] == ["home", "theirs"]


def test_import_waits_for_no_running_node(tmp_path: Path) -> None:
    state.belong(tmp_path / "a", (), node(tmp_path / "a"), "home", now=NOW)
    text = state.export_mesh(tmp_path / "a")
    with (
        state.locked(tmp_path / "b"),
        pytest.raises(LocalError, match="stop it"),
    ):
        state.import_mesh(tmp_path / "b", text)


def test_export_without_the_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="does not hold the mesh key"):
        state.export_mesh(tmp_path)


def test_key_without_a_name_is_exported_too(tmp_path: Path) -> None:
    (tmp_path / "mesh.key").write_bytes(b"m" * 32)
    assert state.import_mesh(tmp_path / "b", state.export_mesh(tmp_path)).name == "mesh"


@pytest.mark.parametrize("text", ["", "mn1_AAAA", "mk1_", "mk1_!", "mk1_" + "A" * 20_000])
def test_what_is_no_mesh_key_is_refused_in_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="copy the whole text"):
        state.import_mesh(tmp_path, text)


def test_founder_becomes_another_node_of_its_mesh(tmp_path: Path) -> None:
    before = node(tmp_path)
    mine = state.belong(tmp_path, (), before, "home", now=NOW)
    rotated = state.rotate_identity(tmp_path)
    after = key_of(tmp_path)
    assert (rotated.before, rotated.after) == (peer_id(before), peer_id(after))
    assert before != after
    again = state.belong(tmp_path, (), after, "x", now=NOW)
    assert (again.mesh, again.name) == (mine.mesh, "home")
    assert check(again.credential, again.mesh, NOW).peer == rotated.after


def test_guest_becomes_another_node_by_its_token(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other"))
    state.belong(tmp_path, (ticket,), node(tmp_path), "x", now=NOW)
    rotated = state.rotate_identity(tmp_path)
    again = state.belong(tmp_path, (), key_of(tmp_path), "x", now=NOW)
    assert check(again.credential, again.mesh, NOW).peer == rotated.after


def test_node_that_redeemed_needs_a_new_token(tmp_path: Path) -> None:
    ticket = read_token(make_invite(OTHER_KEY, b"i" * 32, name="other", uses=1))
    before = node(tmp_path)
    credential = redeemed(OTHER_KEY, ticket.invite, before)
    state.belong(tmp_path, (ticket,), before, "x", now=NOW, credential=credential)
    with pytest.raises(LocalError, match="new token"):
        state.rotate_identity(tmp_path)
    assert key_of(tmp_path) == before


def test_revoked_node_needs_a_new_token(tmp_path: Path) -> None:
    founder, guest = tmp_path / "a", tmp_path / "b"
    mine = state.belong(founder, (), node(founder), "home", now=NOW)
    inviter = state.Inviter(founder, mine, lambda: NOW)
    ticket = read_token(inviter.make((), "member", None))
    before = node(guest, b"g" * 32)
    there = state.belong(guest, (ticket,), before, "x", now=NOW)
    member = check(there.credential, there.mesh, NOW)
    state.keep_revocation(guest, there.id, inviter.revoke(member.peer, [member]))
    with pytest.raises(LocalError, match="new token"):
        state.rotate_identity(guest)


def test_node_that_never_ran_gets_a_key(tmp_path: Path) -> None:
    rotated = state.rotate_identity(tmp_path)
    assert peer_id(key_of(tmp_path)) == rotated.after
    assert state.meshes(tmp_path) == ()
    assert state.known_peers(tmp_path, MeshId("0")) == ()


def test_damaged_node_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_bytes(b"x")
    with pytest.raises(SettingsError, match=r"node\.key is damaged"):
        state.rotate_identity(tmp_path)
