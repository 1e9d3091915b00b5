"""What a user calls a peer, and what the shell completes."""

import click
import pytest

from p2p_mesh.cli.names import complete_peer, complete_standby, find_peer, is_invite, is_peer_id
from p2p_mesh.core.names import peer_id
from p2p_mesh.errors import LocalError
from tests.cli.conftest import Port

BOB, EVE = str(peer_id(b"b" * 32)), str(peer_id(b"e" * 32))
PEERS = [{"peer_id": BOB, "name": "bob"}, {"peer_id": EVE, "name": "eve"}]


def test_peer_goes_by_its_name_or_its_id() -> None:
    assert find_peer("bob", PEERS) == BOB
    assert find_peer(EVE, PEERS) == EVE


def test_peer_that_takes_the_name_of_another_is_not_taken_for_it() -> None:
    with pytest.raises(LocalError, match="2 peers are called bob: give the peer id"):
        find_peer("bob", [*PEERS, {"peer_id": "12D3", "name": "bob"}])


def test_name_that_looks_like_an_id_means_the_id() -> None:
    assert find_peer(BOB, [{"peer_id": EVE, "name": BOB}]) == BOB


def test_unknown_peer_is_said() -> None:
    with pytest.raises(LocalError, match="no peer is called carol"):
        find_peer("carol", PEERS)


def test_ids_are_told_from_names() -> None:
    assert is_peer_id(BOB)
    assert not is_peer_id("bob")
    assert [is_invite(text) for text in ("0123456789ab", "mn1_x", "bob", "0123456789AB")] == [
        True, True, False, False
    ]  # fmt: skip


def completed(complete: object, port: Port | None, begun: str) -> list[str]:
    context = click.Context(click.Command("x"))
    context.params = {"data_dir": port.directory if port else "/nowhere"}
    return complete(context, click.Argument(["x"]), begun)  # type: ignore[no-any-return, operator]


def test_shell_completes_what_the_node_knows(port: Port) -> None:
    port.answers["/api/status"] = [
        {"peers": [*PEERS, {"peer_id": "12D3", "name": ""}, {"peer_id": "12D3", "name": "b\nc"},
                   {"peer_id": "12D3", "name": "b$(reboot)"}],
         "standby": [{"id": "tiny"}, {"id": "big"}]}
    ]  # fmt: skip
    assert completed(complete_peer, port, "b") == ["bob"]
    assert completed(complete_peer, port, "12D3") == sorted(["12D3", BOB, EVE])
    assert completed(complete_standby, port, "") == ["big", "tiny"]


def test_shell_completes_nothing_where_no_node_runs() -> None:
    assert completed(complete_peer, None, "") == []
