"""What a row of the status says (tests/cli/test_client.py asks a node for one)."""

import pytest

from p2p_mesh.cli.status import _model, _peer, _show_head, _show_more


def test_loading_model_shows_how_far_it_is() -> None:
    row = {"id": "m", "state": "loading", "progress": 0.25, "error": "", "context": None,
           "slots": None, "active": 0, "queued": 0, "device": None}  # fmt: skip
    assert _model(row) == ["m", "25%", "-", "-", "0", "0", "-"]


def test_failed_model_shows_why(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "m", "state": "failed", "progress": 0, "error": "too big", "context": 8,
           "slots": 2, "active": 1, "queued": 3, "device": "http://h:1"}  # fmt: skip
    assert _model(row) == ["m", "failed", "8", "2", "1", "3", "http://h:1"]
    _show_more([row])
    assert capsys.readouterr().out == "  m: too big\n"


@pytest.mark.parametrize(("waiting", "state"), [(True, "waiting"), (False, "restarting")])
def test_reason_to_wait_widens_no_column(waiting: bool, state: str) -> None:
    row = {"id": "m", "state": "loading", "progress": 0.0, "error": "long " * 200, "context": None,
           "slots": None, "active": 0, "queued": 0, "device": None, "waiting": waiting}  # fmt: skip
    assert _model(row)[1] == state


def test_who_holds_the_layers_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _show_more([{"id": "m", "error": "", "notes": ["in stages: layers 0-5 here"]}])
    assert capsys.readouterr().out == "  m: in stages: layers 0-5 here\n"


def test_what_the_disk_costs_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"expert_hit_rate": 0.634, "disk_bytes_per_token": 41.2e6, "expert_bytes": 16e9,
                "disk_bandwidth_bytes": 1.2e9, "disk_wait_share": 0.71}  # fmt: skip
    _show_more([{"id": "m", "error": "", "measures": measures}])
    assert capsys.readouterr().out == (
        "  m: hit rate 63%, 41 MB a token at 1.2 GB/s, 71% of the time waiting for the disk\n"
    )


def test_a_disk_that_is_not_read_is_not_taken_for_a_slow_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measures = {"expert_hit_rate": 1.0, "disk_bytes_per_token": 0.0, "expert_bytes": 16e9,
                "disk_bandwidth_bytes": 0.0, "disk_wait_share": 0.0}  # fmt: skip
    _show_more([{"id": "m", "error": "", "measures": measures}])
    said = "hit rate 100%, nothing was read from the disk of late"
    assert capsys.readouterr().out == f"  m: {said}\n"


def test_other_measures_are_said_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    _show_more([{"id": "m", "error": "", "measures": {"warmth": 0.25, "turns": 12_000_000}}])
    assert capsys.readouterr().out == "  m: warmth 0.25, turns 12000000\n"


def test_shard_says_what_it_keeps(capsys: pytest.CaptureFixture[str]) -> None:
    _show_more([{"id": "m", "error": "", "shard": {"model": "12" * 32, "mass": 0.9123}}])
    said = "an expert shard, with 91.2% of the routing mass of the whole model (121212121212)"
    assert capsys.readouterr().out == f"  m: {said}\n"


def test_a_shard_is_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    note = "expert shard 2 of 2: 16 of 32 experts a layer, 0.77 of the routing"
    shard = {"model": "12" * 32, "mass": 0.77}
    _show_more([{"id": "m", "error": "", "notes": [note], "shard": shard}])
    assert capsys.readouterr().out == f"  m: {note}\n"


def test_peer_shows_its_models() -> None:
    row = {"peer_id": "p", "name": "bob", "state": "suspect", "models": ["m", "n"]}
    assert _peer(row) == ["p", "bob", "suspect", "m, n"]


def test_node_that_is_out_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    head = {"name": "a", "version": "1", "uptime_s": 1.0, "api_url": "", "console_url": "",
            "peer_id": "p", "mesh_id": "m", "role": "member", "owners": [],
            "is_revoked": True, "revoked_peers": 0}  # fmt: skip
    _show_head(head)
    assert "this node's membership was taken back" in capsys.readouterr().out
