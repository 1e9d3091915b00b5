"""`meshnode control`: orders to another node, by way of the one that runs here."""

import json
from typing import Any

import pytest

from p2p_mesh.cli import watching
from p2p_mesh.cli.control import find_model
from p2p_mesh.cli.main import execute
from p2p_mesh.core.names import peer_id
from p2p_mesh.errors import LocalError
from tests.cli.conftest import Port, refusal

BOX = str(peer_id(b"b" * 32))
DIGEST = "0123abcd" + "0" * 56


def model(state: str, **changed: Any) -> dict[str, Any]:
    about = {"id": "m", "digest": DIGEST, "state": state, "progress": 0.5, "active": 0,
             "queued": 0, "error": ""}  # fmt: skip
    return about | changed


@pytest.fixture
def box(port: Port, monkeypatch: pytest.MonkeyPatch) -> Port:
    monkeypatch.setattr(watching, "EVERY", 0)
    port.answers["/api/status"] = [{"peers": [{"peer_id": BOX, "name": "box"}]}]
    return port


def reports(box: Port, *models: dict[str, Any]) -> None:
    box.answers["/api/orders"] = [{"models": [one]} for one in models]


def ordered(box: Port) -> list[tuple[str, str | None]]:
    assert all(body["peer"] == BOX for _, body in box.asked)
    return [(body["command"], body["digest"]) for _, body in box.asked]


def test_models_of_another_node(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    reports(box, model("loading"))
    assert execute(["control", "box", "list", "--data-dir", box.directory]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["m", "50%", "0", "0", DIGEST[:12]]
    assert execute(["control", BOX, "list", "--json", "--data-dir", box.directory]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == [model("loading")]
    box.answers["/api/orders"] = [{"models": []}]
    assert execute(["control", "box", "list", "--data-dir", box.directory]) == 0
    assert "no model" in capsys.readouterr().out


def test_model_is_named_by_its_digest(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    reports(box, model("held"), model("loading"), model("loading"), model("ready"))
    assert execute(["control", "box", "load", "m", "--data-dir", box.directory]) == 0
    assert ordered(box)[:2] == [("list", None), ("load", DIGEST)]
    assert capsys.readouterr().out == "m is ready on box\n"


def test_model_that_loads_already_is_waited_for(box: Port) -> None:
    reports(box, model("loading"), model("ready"))
    assert execute(["control", "box", "load", "0123abcd", "--data-dir", box.directory]) == 0
    assert ordered(box) == [("list", None), ("list", None)]


def test_model_that_fails_there_fails_here(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    reports(box, model("held"), model("loading"), model("failed", error="too big"))
    assert execute(["control", "box", "load", "m", "--data-dir", box.directory]) == 2
    assert "too big" in capsys.readouterr().err


def test_unloading_is_waited_for(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    reports(box, model("ready"), model("unloading"), model("unloading", active=2), model("held"))
    assert execute(["control", "box", "unload", "m", "--data-dir", box.directory]) == 0
    assert ordered(box)[1] == ("unload", DIGEST)
    said = capsys.readouterr()
    assert said.out == "m is unloaded on box\n"
    assert "waiting for 2 answers" in said.err


def test_node_is_stopped(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    reports(box, model("ready"))
    assert execute(["control", "box", "stop", "--data-dir", box.directory]) == 0
    assert ordered(box) == [("stop", None)]
    assert capsys.readouterr().out == "box stops\n"


@pytest.mark.parametrize("words", [["load"], ["unload"], ["list", "m"], ["stop", "m"]])
def test_model_belongs_to_load_and_unload(
    box: Port, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["control", "box", *words, "--data-dir", box.directory]) == 2
    assert "MODEL" in capsys.readouterr().err


def test_refusal_is_passed_on(box: Port, capsys: pytest.CaptureFixture[str]) -> None:
    box.answers["/api/orders"] = [refusal("this node does not accept the owner", "refused", 502)]
    assert execute(["control", "box", "stop", "--data-dir", box.directory]) == 1
    assert "does not accept the owner" in capsys.readouterr().err


def test_what_means_no_model_or_two_is_said() -> None:
    two = [model("held"), model("held", id="n", digest="0123abcd" + "1" * 56)]
    with pytest.raises(LocalError, match="means m, n"):
        find_model("0123abcd", two)
    assert find_model("0123abcd1", two)["id"] == "n"
    with pytest.raises(LocalError, match="no model x; it has m, n"):
        find_model("x", two)
    with pytest.raises(LocalError, match="it has none"):
        find_model("0123", [])
    with pytest.raises(LocalError, match="digest of m is not known"):
        find_model("m", [model("ready", digest=None)])
