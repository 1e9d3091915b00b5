"""`meshnode load`."""

import json
from pathlib import Path

import pytest

from p2p_mesh.cli import watching
from p2p_mesh.cli.main import execute
from tests.cli.conftest import Port, refusal

READY = {"id": "m", "state": "ready", "error": "", "context": 8, "slots": 2, "device": "cpu"}


@pytest.fixture
def serving(port: Port, monkeypatch: pytest.MonkeyPatch) -> Port:
    monkeypatch.setattr(watching, "EVERY", 0)
    port.answers["/api/load"] = [{"model": "m"}]
    loading = {"id": "m", "state": "loading", "progress": 0.5}
    port.answers["/api/status"] = [{"models": [loading]}, {"models": [READY]}]
    return port


def test_model_is_loaded(serving: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["load", "0123abcd", "--data-dir", serving.directory]) == 0
    assert serving.asked == [("/api/load", {"model": "0123abcd"})]
    assert capsys.readouterr().out == "m is ready: context 8, 2 at a time, on cpu\n"


def test_model_as_json(serving: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["load", "m", "--json", "--data-dir", serving.directory]) == 0
    assert json.loads(capsys.readouterr().out) == READY


def test_path_is_of_this_shell(
    serving: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert execute(["load", "m.gguf", "--data-dir", serving.directory]) == 0
    assert serving.asked == [("/api/load", {"model": str(tmp_path / "m.gguf")})]


def test_folder_is_of_this_shell_where_it_is_a_package(
    serving: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("layers", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "layers" / "model-package.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("layers", "other"):
        assert execute(["load", name, "--data-dir", serving.directory]) == 0
    asked = [body["model"] for _, body in serving.asked]
    assert asked == [str(tmp_path / "layers"), "other"]


def test_bad_model_is_something_to_mend(serving: Port, capsys: pytest.CaptureFixture[str]) -> None:
    serving.answers["/api/load"] = [refusal("it does not fit; give it --ctx 512", "bad_model")]
    assert execute(["load", "m", "--data-dir", serving.directory]) == 2
    assert capsys.readouterr().err == "Error: it does not fit; give it --ctx 512\n"
    serving.answers["/api/load"] = [refusal("m is served already")]
    assert execute(["load", "m", "--data-dir", serving.directory]) == 1
