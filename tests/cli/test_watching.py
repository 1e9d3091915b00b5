"""What takes a while is looked at until it is over."""

from collections.abc import Iterator
from typing import Any

import pytest

from p2p_mesh.cli import watching
from p2p_mesh.cli.watching import Look, until_loaded, until_unloaded
from p2p_mesh.errors import LocalError, ModelError


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "EVERY", 0)


def looks(*models: dict[str, Any] | None) -> Look:
    """One after the other; None where it is not there."""

    def steps() -> Iterator[list[dict[str, Any]]]:
        yield from ([{"id": "m", "error": "", **one}] if one else [] for one in models)

    rest = steps()
    return lambda: next(rest)


def test_model_is_waited_for() -> None:
    loading = {"state": "loading", "progress": 0.5}
    assert until_loaded("m", looks(loading, loading, {"state": "ready"}))["state"] == "ready"


def test_reason_to_wait_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    waits = {"state": "loading", "progress": 0.0, "error": "4 GB are missing", "waiting": True}
    fewer = waits | {"error": "3 GB are missing"}
    until_loaded("m", looks(waits, fewer, {"state": "ready"}))
    said = capsys.readouterr().err
    assert said.count("m waits for nodes: 4 GB are missing") == 1


@pytest.mark.parametrize(
    ("last", "words"),
    [({"state": "failed", "error": "too big"}, "too big"), ({"state": "held"}, "held")],
)
def test_model_that_is_not_served_is_an_error(last: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"m is not served: {words}"):
        until_loaded("m", looks({"state": "loading", "progress": 0}, last))


def test_model_that_goes_away_is_an_error() -> None:
    with pytest.raises(LocalError, match="gone again"):
        until_loaded("m", looks({"state": "loading", "progress": 0}, None))


def test_last_answers_are_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    look = looks({"active": 2, "queued": 1}, {"active": 1, "queued": 0}, None)
    assert until_unloaded("m", look) == 3
    assert "waiting for 3 answers" in capsys.readouterr().err


def test_model_without_answers_is_gone_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert until_unloaded("m", looks(None)) == 0
    assert until_unloaded("m", looks({"active": 0, "queued": 0}, None)) == 0
    assert capsys.readouterr().err == ""
