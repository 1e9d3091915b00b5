"""`meshnode mesh`: what a data directory remembers, and the key of its mesh on its way."""

import io
import json
import stat
import sys
from pathlib import Path

import pytest

from p2p_mesh import state
from p2p_mesh.cli.main import execute


def run(capsys: pytest.CaptureFixture[str], directory: Path, *words: str) -> str:
    assert execute(["mesh", *words, "--data-dir", str(directory)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def holder(tmp_path: Path) -> Path:
    """A node that founded a mesh."""
    directory = tmp_path / "holder"
    with state.locked(directory):
        state.belong(directory, (), b"n" * 32, "home", 0.0)
    return directory


def test_meshes_are_listed(
    holder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = json.loads(run(capsys, holder, "list", "--json"))
    assert (found["name"], found["current"], found["key"]) == ("home", True, True)
    assert f"{found['id']}  home  yes      yes" in run(capsys, holder, "list")
    assert "no mesh yet" in run(capsys, tmp_path / "other", "list")
    assert json.loads(run(capsys, tmp_path / "other", "list", "--json")) == []


def test_key_goes_to_another_node(
    holder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "home.key"
    assert str(file) in run(capsys, holder, "export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "home" in run(capsys, tmp_path / "other", "import", str(file))
    (ours,) = json.loads(run(capsys, holder, "list", "--json"))
    (theirs,) = json.loads(run(capsys, tmp_path / "other", "list", "--json"))
    assert theirs == ours


def test_key_goes_by_a_pipe(
    holder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    secret = run(capsys, holder, "export")
    assert secret.startswith("mk1_")
    assert json.loads(run(capsys, holder, "export", "--json")) == {"key": secret.strip()}
    monkeypatch.setattr(sys, "stdin", io.StringIO(secret))
    assert json.loads(run(capsys, tmp_path / "other", "import", "--json"))["name"] == "home"


def test_export_warns_of_the_secret(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mesh", "export", "--data-dir", str(holder)]) == 0
    assert "Keep this secret" in capsys.readouterr().err


def test_export_writes_over_no_file(
    holder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "there"
    file.write_text("mine")
    assert execute(["mesh", "export", str(file), "--data-dir", str(holder)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    nowhere = str(tmp_path / "none" / "x")
    assert execute(["mesh", "export", nowhere, "--data-dir", str(holder)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_what_is_no_mesh_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("mk1_nonsense"))
    assert execute(["mesh", "import", "--data-dir", str(tmp_path / "a")]) == 2
    assert "no key of a mesh" in capsys.readouterr().err
    assert execute(["mesh", "import", "/nowhere", "--data-dir", str(tmp_path / "a")]) == 2
    assert "/nowhere cannot be read" in capsys.readouterr().err


def test_node_goes_back_to_a_mesh(
    holder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with state.locked(tmp_path / "other"):
        state.belong(tmp_path / "other", (), b"o" * 32, "work", 0.0)
    secret = tmp_path / "work.key"
    run(capsys, tmp_path / "other", "export", str(secret))
    run(capsys, holder, "import", str(secret), "--replace")
    assert [one["name"] for one in json.loads(run(capsys, holder, "list", "--json"))] == [
        "work", "home"
    ]  # fmt: skip
    assert "home" in run(capsys, holder, "use", "home")
    assert json.loads(run(capsys, holder, "list", "--json"))[0]["name"] == "home"


def test_unknown_mesh_is_refused(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mesh", "use", "elsewhere", "--data-dir", str(holder)]) in (1, 2)
    assert "elsewhere" in capsys.readouterr().err


def test_running_node_changes_no_mesh(holder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with state.locked(holder):
        assert execute(["mesh", "use", "home", "--data-dir", str(holder)]) == 1
    assert "stop it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["list", "use", "export", "import"])
def test_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["mesh", name, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out
