from __future__ import annotations

import os
from pathlib import Path

from p2p_mesh.serve.version import version


def test_a_file_is_told_from_what_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    first = version(str(path))
    assert first is not None
    assert version(str(path)) == first
    os.utime(path, ns=(5, 5))
    second = version(str(path))
    assert second != first
    (tmp_path / "new").write_bytes(b"two")
    os.utime(tmp_path / "new", ns=(5, 5))
    (tmp_path / "new").replace(path)
    assert version(str(path)) != second


def test_a_folder_and_what_is_not_there_have_none(tmp_path: Path) -> None:
    assert version(str(tmp_path)) is None
    assert version(str(tmp_path / "none.gguf")) is None


def test_every_file_of_a_model_counts(tmp_path: Path) -> None:
    paths = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for path in paths:
        path.write_bytes(b"x")
    first = version(str(paths[0]))
    os.utime(paths[1], ns=(5, 5))
    assert version(str(paths[0])) != first
    paths[1].unlink()
    assert version(str(paths[0])) is None
