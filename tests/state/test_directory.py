"""The data directory: its lock, its node.json, its files."""

import errno
import json
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from p2p_mesh import state
from p2p_mesh.core.names import MeshId
from p2p_mesh.errors import LocalError, SettingsError
from p2p_mesh.state.directory import folder, read, write

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


def test_api_key_is_made_once(tmp_path: Path) -> None:
    key, is_new = state.api_key(tmp_path)
    assert is_new
    assert state.api_key(tmp_path) == (key, False)
    assert mode(tmp_path / "api.key") == 0o600


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


def test_full_disk_is_one_sentence_and_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "file", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="cannot be written: No space left"):
        write(tmp_path / "file", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert read(tmp_path / "file") == b"before"


def test_file_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "file") is None


def test_folder_of_a_mesh_is_private(tmp_path: Path) -> None:
    assert mode(folder(tmp_path, MeshId("m"))) == 0o700


def test_what_cannot_be_read_or_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "meshes").write_text("")
    with pytest.raises(SettingsError, match="meshes"):
        folder(tmp_path, MeshId("m"))
    with pytest.raises(SettingsError, match="cannot be read"):
        read(tmp_path)


def test_new_name_of_a_file_is_put_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[bool, bool]] = []

    def note(descriptor: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path / "file", b"data")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_folder_that_cannot_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_refused: bool
) -> None:
    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(SettingsError) if is_refused else nullcontext():
        write(tmp_path / "file", b"data")
