"""`meshnode package`: packages are written, checked and cleaned up."""

import json
import sys
from pathlib import Path

import pytest

from p2p_mesh.cli.main import execute
from p2p_mesh.core.package import MANIFEST, OUTPUT, PIECES
from p2p_mesh.settings import cache_dir
from p2p_mesh.testing.models import write_model
from p2p_mesh.testing.projectors import write_projector


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_model(tmp_path / "tiny.gguf").path)


def run(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert execute(["package", *words]) == code
    found = capsys.readouterr()
    return found.err if code and not found.out else found.out


def test_package_is_built_and_verified(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    text = run(capsys, "build", model, "--out", out)
    assert "Wrote 5 files" in text
    assert "random, 2 layers" in text
    text = run(capsys, "verify", out)
    assert "5 files, 2 layers, all as the manifest says" in text
    (tmp_path / "out" / PIECES).unlink()
    assert "no list of the hashes" in run(capsys, "verify", out)


def test_answers_are_json_too(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    mmproj = str(write_projector(tmp_path / "mmproj.gguf"))
    built = json.loads(run(capsys, "build", model, "--mmproj", mmproj, "--out", out, "--json"))
    assert (built["files"], built["layers"], built["path"]) == (6, 2, out)
    found = json.loads(run(capsys, "verify", out, "--json"))
    assert found["manifest_sha256"] == built["manifest_sha256"]
    assert (found["problems"], found["has_pieces"], found["files"]) == ([], True, 6)


def test_what_is_wrong_is_said(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "build", model, "--out", str(out))
    (out / OUTPUT).unlink()
    assert f"{OUTPUT}: it cannot be read" in run(capsys, "verify", str(out), code=2)
    found = json.loads(run(capsys, "verify", str(out), "--json", code=2))
    assert [one["path"] for one in found["problems"]] == [OUTPUT]
    (out / MANIFEST).write_text("{}")
    assert "schema_version" in run(capsys, "verify", str(out), code=2)


def test_build_refuses_what_it_cannot_write(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, "build", model, "--out", str(out))
    assert "holds a package already" in run(capsys, "build", model, "--out", str(out), code=2)
    text = run(capsys, "build", str(out), "--out", str(tmp_path / "x"), code=2)
    assert "is a package already" in text
    text = run(capsys, "build", "hf://a/b", "--out", str(tmp_path / "x"), code=2)
    assert "build takes a GGUF file" in text
    (tmp_path / "file").write_text("in the way")
    text = run(capsys, "build", model, "--out", str(tmp_path / "file" / "x"), code=1)
    assert "cannot be written" in text


def test_cache_is_pruned(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "prune") == "Freed 0.0 MB\n"
    stages = cache_dir() / "stages" / ("ab" * 32)
    stages.mkdir(parents=True)
    (stages / "0-1.gguf").write_bytes(bytes(2_000_000))
    text = run(capsys, "prune", "--dry-run")
    assert "unknown  abababababab  0.0 MB     2.0 MB  goes" in text
    assert "Would free 2.0 MB" in text
    (found,) = json.loads(run(capsys, "prune", "--json"))
    assert (found["size_bytes"], found["removed"], found["used"]) == (2_000_000, True, False)
    assert not stages.exists()


def test_what_stays_in_the_cache_of_the_hub_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blob, layers = tmp_path / "blob", cache_dir() / "packages" / ("ab" * 32) / "layers"
    blob.write_bytes(bytes(3_000_000))
    layers.mkdir(parents=True)
    (layers / "layer-00000.gguf").symlink_to(blob)
    (found,) = json.loads(run(capsys, "prune", "--dry-run", "--json"))
    assert (found["size_bytes"], found["linked_bytes"]) == (0, 3_000_000)
    text = run(capsys, "prune")
    assert "Freed 0.0 MB" in text
    assert "3.0 MB from the hub stay in its own cache" in text
    assert blob.exists()
    assert not layers.exists()


def test_progress_is_shown_on_a_terminal(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert execute(["package", "build", model, "--out", str(tmp_path / "out")]) == 0
    assert f"Writing [{'#' * 30}] 100%" in capsys.readouterr().err
