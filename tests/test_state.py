"""What stays on disk."""

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.invite import check, public_bytes, read_token
from p2p_mesh.errors import LocalError, Refused, SettingsError

NODE = public_bytes(Ed25519PrivateKey.from_private_bytes(b"n" * 32))
GUEST = public_bytes(Ed25519PrivateKey.from_private_bytes(b"g" * 32))
NOW = 1_000_000.0
NODE_FILE = state.NodeFile(
    pid=os.getpid(), name="alice", api_url="http://a", console_url="http://c", token="t"
)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_second_lock_names_the_holder(tmp_path: Path) -> None:
    with (
        state.locked(tmp_path / "d"),
        state.published(tmp_path / "d", NODE_FILE),
        pytest.raises(LocalError, match=rf"alice \(process {os.getpid()}\) runs on .*--data-dir"),
        state.locked(tmp_path / "d"),
    ):
        pass


def test_lock_is_free_again(tmp_path: Path) -> None:
    for _ in range(2):
        with state.locked(tmp_path):
            pass


def test_data_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--data-dir"), state.locked(tmp_path / "file"):
        pass


def test_node_file_is_private_and_goes_with_the_node(tmp_path: Path) -> None:
    with state.published(tmp_path, NODE_FILE):
        assert mode(tmp_path / "node.json") == 0o600
        assert state.running(tmp_path) == NODE_FILE
        assert json.loads((tmp_path / "node.json").read_text())["token"] == "t"
    assert state.running(tmp_path) is None


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
    token = state.Inviter(founder, mine).standing(("/ip4/1.2.3.4/tcp/1/p2p/x",))
    assert token is not None
    joined = state.belong(guest, (read_token(token),), GUEST, "ignored", now=NOW)
    assert (joined.mesh, joined.name) == (mine.mesh, "home")
    assert joined.seeds == ("/ip4/1.2.3.4/tcp/1/p2p/x",)
    assert state.belong(guest, (), GUEST, "ignored", now=NOW) == joined
    assert state.Inviter(guest, joined).standing(()) is None


def test_expired_token_leaves_the_old_membership(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    (tmp_path / "other").mkdir()
    theirs = state.belong(tmp_path / "other", (), GUEST, "other", now=NOW)
    expired = state.Inviter(tmp_path / "other", theirs).make((), "member", int(NOW) - 1)
    with pytest.raises(Refused, match="has ended"):
        state.belong(tmp_path, (read_token(expired),), NODE, "home", now=NOW)
    assert state.belong(tmp_path, (), NODE, "home", now=NOW) == mine


def test_standing_invite_is_the_same_each_time(tmp_path: Path) -> None:
    state.belong(tmp_path, (), NODE, "home", now=NOW)
    tokens = {
        state.Inviter(tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW)).standing(())
        for _ in range(2)
    }
    assert len(tokens) == 1


def test_new_invite_is_a_new_one(tmp_path: Path) -> None:
    inviter = state.Inviter(tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW))
    first, second = (inviter.make((), "client", 2_000_000_000) for _ in range(2))
    assert first != second
    assert read_token(first).invite.until == 2_000_000_000


def test_without_the_mesh_key_there_is_no_invite(tmp_path: Path) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)
    (tmp_path / "mesh.key").unlink()
    inviter = state.Inviter(tmp_path, mine)
    assert inviter.standing(()) is None
    with pytest.raises(LocalError, match="does not hold the mesh key"):
        inviter.make((), "member", None)


def test_tokens_of_two_meshes_are_refused(tmp_path: Path) -> None:
    tickets = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        mine = state.belong(tmp_path / name, (), NODE, name, now=NOW)
        tickets.append(read_token(state.Inviter(tmp_path / name, mine).make((), "member", None)))
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
        state.Inviter(tmp_path, state.belong(tmp_path, (), NODE, "home", now=NOW))


def test_api_key_is_made_once(tmp_path: Path) -> None:
    key, is_new = state.api_key(tmp_path)
    assert is_new
    assert state.api_key(tmp_path) == (key, False)
    assert mode(tmp_path / "api.key") == 0o600


def test_full_disk_is_one_sentence_and_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = state.belong(tmp_path, (), NODE, "home", now=NOW)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="cannot be written: No space left"):
        state.remember(tmp_path, mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mesh", "mesh.key"]


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe"])
def test_damaged_api_key_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "api.key").write_bytes(damage)
    with pytest.raises(SettingsError, match=r"api\.key"):
        state.api_key(tmp_path)


def test_node_file_that_is_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.json").mkdir()
    with (
        pytest.raises(SettingsError, match=r"node\.json cannot be written"),
        state.published(tmp_path, NODE_FILE),
    ):
        pass
