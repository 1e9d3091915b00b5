"""`meshnode unload`."""

import json

import pytest

from p2p_mesh.cli import watching
from p2p_mesh.cli.main import execute
from tests.cli.conftest import Port, refusal


@pytest.fixture
def serving(port: Port, monkeypatch: pytest.MonkeyPatch) -> Port:
    monkeypatch.setattr(watching, "EVERY", 0)
    port.answers["/api/unload"] = [{"model": "m"}]
    port.answers["/api/status"] = [
        {"unloading": [{"id": "m", "active": 1, "queued": 0}]}, {"unloading": []}
    ]  # fmt: skip
    return port


def test_unloading_says_what_it_waits_for(
    serving: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["unload", "0123abcd", "--data-dir", serving.directory]) == 0
    assert serving.asked == [("/api/unload", {"model": "0123abcd"})]
    said = capsys.readouterr()
    assert said.out == "m is unloaded\n"
    assert "waiting for 1 answer\n" in said.err


def test_unloading_as_json(serving: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["unload", "m", "--json", "--data-dir", serving.directory]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "m", "waited_for": 1}


def test_model_that_is_not_served_is_an_error(
    serving: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    serving.answers["/api/unload"] = [refusal("m is not served by this node")]
    assert execute(["unload", "m", "--data-dir", serving.directory]) == 1
    assert "not served" in capsys.readouterr().err
