"""What a folder says of the package in it."""

import hashlib
from pathlib import Path

import pytest

from p2p_mesh.core.package import MANIFEST, METADATA, PIECES
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.folder import ORIGIN, Origin


def test_package_describes_itself(built: Path) -> None:
    found = folders.describe(built)
    assert (found.name, found.header.architecture) == ("built", "llama")
    assert found.digest == hashlib.sha256((built / MANIFEST).read_bytes()).hexdigest()
    assert folders.is_package(built)
    assert not folders.is_package(built / "shared")


def test_package_from_a_hub_is_named_as_there(built: Path) -> None:
    (built / ORIGIN).write_text('{"hub": "hf://mesh/qwen-layers@main"}')
    assert folders.name(built) == "qwen-layers"


@pytest.mark.parametrize("text", ["", "{", '{"hub": 1}', "\x80"])
def test_damaged_origin_is_none(built: Path, text: str) -> None:
    (built / ORIGIN).write_text(text, encoding="latin-1")
    assert folders.read_origin(built) == Origin()


def test_changed_metadata_are_refused(built: Path) -> None:
    path = built / METADATA
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match="its SHA-256 differs"):
        folders.describe(built)
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"metadata\.gguf: it is no GGUF"):
        folders.describe(built)
    path.unlink()
    with pytest.raises(ModelError, match=r"metadata\.gguf cannot be read: No such file"):
        folders.describe(built)


def test_pieces_may_be_absent(built: Path) -> None:
    assert folders.read_pieces_of(built)
    (built / PIECES).unlink()
    assert folders.read_pieces_of(built) == b""


def test_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(11))
    with pytest.raises(ModelError, match="more than 10 bytes"):
        folders.read_text(tmp_path / "long", 10)
    with pytest.raises(ModelError, match="cannot be read"):
        folders.read_text(tmp_path / "none", 10)


def test_small_files_are_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    folders.keep(folder, {"a": b"1", "b/c": b"2", "none": b""})
    before = (folder / "a").stat().st_ino
    folders.keep(folder, {"a": b"1", "b/c": b"3"})
    assert (folder / "a").stat().st_ino == before
    assert (folder / "b/c").read_bytes() == b"3"
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b", "c"]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="directory"):
        folders.write_aside(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_link_takes_the_place_of_another(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / text).write_text(text)
        folders.link(tmp_path / "links" / "it", tmp_path / text)
    assert (tmp_path / "links" / "it").read_text() == "two"
