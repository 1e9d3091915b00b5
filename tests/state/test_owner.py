"""The owner's key on disk."""

import stat
from pathlib import Path

import pytest

from p2p_mesh.core.signature import public_bytes
from p2p_mesh.errors import LocalError, SettingsError
from p2p_mesh.state.owner import make_owner_key, owner_key


def test_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    first = public_bytes(make_owner_key(directory))
    assert public_bytes(make_owner_key(directory)) == first
    assert public_bytes(owner_key(directory)) == first
    assert stat.S_IMODE((directory / "owner.key").stat().st_mode) == 0o600
    assert [path.name for path in directory.iterdir()] == ["owner.key"]


def test_without_a_key_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="meshnode owner key"):
        owner_key(tmp_path)


def test_damaged_key_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "owner.key").write_bytes(b"short")
    with pytest.raises(SettingsError, match="damaged"):
        make_owner_key(tmp_path)
    assert (tmp_path / "owner.key").read_bytes() == b"short"


def test_directory_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be"):
        make_owner_key(tmp_path / "file")
