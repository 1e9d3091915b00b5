"""`meshnode revoke`."""

import json

import pytest

from p2p_mesh.cli.main import execute
from p2p_mesh.core.names import peer_id
from tests.cli.conftest import Port, refusal

BOB, EVE = str(peer_id(b"b" * 32)), str(peer_id(b"e" * 32))
STATUS = {"peers": [{"peer_id": BOB, "name": "bob"}, {"peer_id": EVE, "name": "0123456789ab"}]}


@pytest.fixture
def holder(port: Port) -> Port:
    port.answers["/api/status"] = [STATUS]
    port.answers["/api/revocations"] = [{"version": 3, "peers": [BOB], "invite": "5f0c1be09a7d"}]
    return port


@pytest.mark.parametrize("what", ["bob", BOB])
def test_peer_is_revoked_by_name_or_id(
    holder: Port, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["revoke", what, "--data-dir", holder.directory]) == 0
    assert holder.asked == [("/api/revocations", {"what": BOB})]
    assert capsys.readouterr().out == f"Revoked the peer {BOB}\n  out: {BOB}  bob\n"


def test_invite_is_revoked_by_its_id(holder: Port, capsys: pytest.CaptureFixture[str]) -> None:
    # A peer that calls itself as an invite is not revoked in its place, nor the other way round.
    assert execute(["revoke", "0123456789ab", "--json", "--data-dir", holder.directory]) == 0
    assert holder.asked == [("/api/revocations", {"what": "0123456789ab"})]
    assert json.loads(capsys.readouterr().out) == {
        "version": 3, "peers": [BOB], "invite": "5f0c1be09a7d"
    }  # fmt: skip


def test_peer_whose_invite_stays_open_is_named(
    holder: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    holder.answers["/api/revocations"] = [{"version": 3, "peers": [BOB], "invite": None}]
    assert execute(["revoke", BOB, "--data-dir", holder.directory]) == 0
    assert "No invite was closed" in capsys.readouterr().out


def test_token_is_not_shown_again(holder: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["revoke", "mn1_secret", "--data-dir", holder.directory]) == 0
    assert holder.asked == [("/api/revocations", {"what": "mn1_secret"})]
    assert "secret" not in capsys.readouterr().out


def test_unknown_name_revokes_nothing(holder: Port, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["revoke", "carol", "--data-dir", holder.directory]) == 1
    assert holder.asked == []
    assert "no peer is called carol" in capsys.readouterr().err


def test_node_that_cannot_says_why(holder: Port, capsys: pytest.CaptureFixture[str]) -> None:
    holder.answers["/api/revocations"] = [refusal("this node does not hold the mesh key")]
    assert execute(["revoke", BOB, "--data-dir", holder.directory]) == 1
    assert "mesh key" in capsys.readouterr().err
