"""A package is written whole, or is none."""

import os
from collections import namedtuple
from pathlib import Path

import pytest

from p2p_mesh.core.package import MANIFEST, PIECES
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.package.blob import Job, Stopped
from p2p_mesh.serve.package.build import build
from p2p_mesh.serve.package.verification import verify
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.packages import split_model
from p2p_mesh.testing.projectors import write_projector


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_package_has_the_published_layout(built: Path) -> None:
    assert names(built) == [
        "layers/layer-00000.gguf", "layers/layer-00001.gguf", MANIFEST, PIECES,
        "shared/embeddings.gguf", "shared/metadata.gguf", "shared/output.gguf",
    ]  # fmt: skip


def test_same_model_gives_the_same_bytes(
    model: Path, built: Path, tmp_path: Path, digests: Digests
) -> None:
    moved = model.rename(tmp_path / "moved.gguf")
    build(moved, tmp_path / "again", projectors=(), digests=digests, job=Job())
    for name in names(built):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes()


def test_split_model_and_projector_make_a_good_package(
    model: Path, tmp_path: Path, digests: Digests
) -> None:
    projector = write_projector(tmp_path / "mmproj-tiny.gguf")
    out = tmp_path / "deep" / "out"
    found = build(split_model(model), out, projectors=[projector], digests=digests, job=Job())
    assert [one.path for one in found.projectors] == ["projectors/mmproj-tiny.gguf"]
    assert (out / "projectors" / "mmproj-tiny.gguf").read_bytes() == projector.read_bytes()
    assert verify(out, Job()).problems == ()


def test_package_is_never_written_over(model: Path, built: Path, digests: Digests) -> None:
    with pytest.raises(ModelError, match="holds a package already"):
        build(model, built, projectors=(), digests=digests, job=Job())


def test_bad_model_is_named(tmp_path: Path, digests: Digests) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"no model")
    for name, reason in (("bad.gguf", "cannot be made a package: it is no GGUF"),
                         ("none.gguf", r"none\.gguf cannot be read: No such file")):  # fmt: skip
        with pytest.raises(ModelError, match=reason):
            build(tmp_path / name, tmp_path / "out", projectors=(), digests=digests, job=Job())
    assert not (tmp_path / "out").exists()


def test_broken_off_build_leaves_no_package(model: Path, tmp_path: Path, digests: Digests) -> None:
    out = tmp_path / "out"
    job = Job()
    job.stop()
    with pytest.raises(Stopped):
        build(model, out, projectors=(), digests=digests, job=job)
    assert names(out) == []
    (out / "shared" / ".output.gguf.part").write_bytes(b"of a build that was killed")
    build(model, out, projectors=(), digests=digests, job=Job())
    assert verify(out, Job()).problems == ()


def test_disk_without_room_is_said_before(
    model: Path, tmp_path: Path, digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    Room = namedtuple("Room", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: Room(1, 4096))
    with pytest.raises(ModelError, match=r"takes 0\.0 GB, and 0\.0 GB are free"):
        build(model, tmp_path / "out", projectors=(), digests=digests, job=Job())
