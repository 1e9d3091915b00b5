"""The node's key on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from p2p_mesh.core.names import peer_id
from p2p_mesh.errors import SettingsError
from p2p_mesh.net.identity import Identity, load_identity


def test_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "node" / "identity"
    first = load_identity(path)
    assert load_identity(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["identity"]


def test_both_shapes_are_one_key() -> None:
    identity = Identity(bytes(range(32)))
    assert identity.key_pair().public_key.to_bytes() == identity.public_key
    assert identity.peer_id == peer_id(identity.public_key)
    assert identity.key.private_bytes_raw() == bytes(range(32))


def test_libp2p_has_the_same_peer_id() -> None:
    from libp2p import generate_peer_id_from

    identity = Identity(bytes(range(32)))
    assert str(generate_peer_id_from(identity.key_pair())) == identity.peer_id


def test_readable_key_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    load_identity(path)
    path.chmod(0o644)
    load_identity(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("cut", [0, 10, 51])
def test_damaged_key_is_refused_by_name(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "identity"
    load_identity(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SettingsError, match=r"identity is damaged.*backup"):
        load_identity(path)


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    path.write_bytes(b"x" * 52)
    with pytest.raises(SettingsError, match="damaged"):
        load_identity(path)


def test_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot keep this node's key"):
        load_identity(tmp_path / "file" / "identity")


def test_seed_is_not_shown() -> None:
    assert "seed" not in repr(Identity(bytes(32)))


def test_race_has_one_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "identity"
    winner = load_identity(path)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert load_identity(path) == winner
    assert os.listdir(tmp_path) == ["identity"]
