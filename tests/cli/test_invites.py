"""`meshnode invites`."""

import json

import pytest

from p2p_mesh.cli.invites import _row
from p2p_mesh.cli.main import execute
from tests.cli.conftest import Port, refusal

INVITE = {"id": "0123456789ab", "role": "client", "made": 0, "until": None, "uses": 2, "used": 1,
          "join_by": None, "revoked": False, "closed": False, "peers": ["12D3"]}  # fmt: skip


def test_invites_are_shown(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    port.answers["/api/invites"] = [{"invites": [INVITE]}]
    assert execute(["invites", "--data-dir", port.directory]) == 0
    title, row = capsys.readouterr().out.splitlines()
    assert title.startswith("INVITE")
    for text in ("0123456789ab", "client", "1 of 2", "open", "12D3"):
        assert text in row
    assert execute(["invites", "--json", "--data-dir", port.directory]) == 0
    assert json.loads(capsys.readouterr().out) == [INVITE]


def test_without_any_it_is_said_how_to_make_one(
    port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    port.answers["/api/invites"] = [{"invites": []}]
    assert execute(["invites", "--data-dir", port.directory]) == 0
    assert "meshnode invite" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"revoked": True, "closed": True}, "revoked"), ({"closed": True}, "closed")],
)
def test_row_says_what_became_of_it(changed: dict[str, bool], word: str) -> None:
    assert _row(INVITE | changed)[6] == word
    assert _row(INVITE | {"uses": None, "peers": []})[4] == "1"


def test_node_that_holds_no_key_says_so(port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    port.answers["/api/invites"] = [refusal("this node does not hold the mesh key")]
    assert execute(["invites", "--data-dir", port.directory]) == 1
    assert "mesh key" in capsys.readouterr().err
