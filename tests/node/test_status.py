"""The status is plain values, and holds no secret."""

import json
from pathlib import Path

import msgspec

from p2p_mesh.core.inventory import Offer
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import Announcement, Resources, ServedModel, Shard
from p2p_mesh.node.status import status
from p2p_mesh.serve.backend import Description
from p2p_mesh.testing.backend import Echo
from tests.node.test_node import MODEL, node
from tests.node.test_sources import Scripted


def test_status_of_a_node_that_starts(tmp_path: Path) -> None:
    mine = node(tmp_path, name="alice")
    found = status(mine, mine.started + 2.5)
    assert json.loads(json.dumps(found)) == found
    assert (found["name"], found["uptime_s"], found["peer_id"]) == ("alice", 2.5, None)
    (model,) = found["models"]
    assert (model["id"], model["state"], model["engine_pid"]) == ("m", "loading", None)
    assert model["measures"] == {}
    assert found["plugins"][0]["name"] == "echo"
    assert mine._token not in json.dumps(found)


def test_peers_are_those_that_announce_and_those_that_are_connected(tmp_path: Path) -> None:
    mine = node(tmp_path)
    announcement = Announcement(
        sequence=(1, 1), issued_at=0, lifetime=60, name="bob", version="1",
        resources=Resources(memory_total=1, memory_free=1, threads=1),
        models=(ServedModel(id=ModelId("tiny"), context=8, slots=1),),
    )  # fmt: skip
    for peer in ("a", "b", "c"):
        mine.inventory.apply(Offer(PeerId(peer), announcement, b"", 60.0))
    mine.inventory.suspect(PeerId("c"))

    class Connected:
        connected = {  # noqa: RUF012
            PeerId("b"): Member(PeerId("b"), "member", None),
            PeerId("d"): Member(PeerId("d"), "client", None),
        }

    mine.members = Connected()  # type: ignore[assignment]
    peers = {one["peer_id"]: (one["state"], one["role"], one["models"])
             for one in status(mine, 0.0)["peers"]}  # fmt: skip
    assert peers == {
        "a": ("known", "member", ["tiny"]),
        "b": ("connected", "member", ["tiny"]),
        "c": ("suspect", "member", ["tiny"]),
        "d": ("connected", "client", []),
    }


def test_what_stands_by_and_what_is_wanted_is_shown(tmp_path: Path) -> None:
    mine = node(tmp_path)
    mine.models.stand_by([msgspec.structs.replace(MODEL, id=ModelId("large"), size_bytes=9)])
    mine.models.wish([ModelId("far")])
    mine.answers.counted(ModelId("large"))
    found = status(mine, 0.0)
    assert found["standby"] == [{"id": "large", "digest": None, "size_bytes": 9}]
    assert found["wishes"] == ["far"]
    assert found["demand"] == {"far": 1.0, "large": 0.69}
    assert found["models"][0]["planned"] is False


def test_endpoints_are_shown_with_their_last_word(tmp_path: Path) -> None:
    mine = node(tmp_path, None, Scripted(Echo()))
    (sourced,) = mine.sourced
    sourced.state, sourced.reason = "failed", "it wants a key"
    assert status(mine, 0.0)["endpoints"] == [
        {"name": "foreign:8080", "state": "failed", "reason": "it wants a key"}
    ]


def test_node_that_hangs_is_suspect_though_it_is_connected(tmp_path: Path) -> None:
    mine = node(tmp_path)
    announcement = Announcement(
        sequence=(1, 1), issued_at=0, lifetime=60, name="bob", version="1",
        resources=Resources(memory_total=1, memory_free=1, threads=1),
    )  # fmt: skip
    mine.inventory.apply(Offer(PeerId("b"), announcement, b"", 60.0))
    mine.inventory.suspect(PeerId("b"))

    class Connected:
        connected = {PeerId("b"): Member(PeerId("b"), "member", None)}  # noqa: RUF012

    mine.members = Connected()  # type: ignore[assignment]
    assert [one["state"] for one in status(mine, 0.0)["peers"]] == ["suspect"]


def test_what_is_unloaded_and_who_is_out_is_shown(tmp_path: Path) -> None:
    mine = node(tmp_path, accept_owner=("mo1_x",))
    found = status(mine, 0.0)
    assert (found["unloading"], found["owners"]) == ([], ["mo1_x"])
    assert (found["revoked_peers"], found["is_revoked"], found["is_holder"]) == (0, False, False)


def test_resources_are_whole_on_a_plain_processor(tmp_path: Path) -> None:
    # "cpu" is the default of the record, and what travels leaves defaults out.
    assert status(node(tmp_path), 0.0)["resources"]["device"] == "cpu"


def test_shard_is_shown_with_its_mass(tmp_path: Path) -> None:
    mine = node(tmp_path)
    (model,) = status(mine, 0.0)["models"]
    assert model["shard"] is None
    shard = Shard(model=Digest("1" * 64), mass=0.5)
    (hosted,) = mine.hosted.values()
    hosted._about = Description(frozenset({"generate"}), context=8, slots=1, shard=shard)
    (model,) = status(mine, 0.0)["models"]
    assert model["shard"] == {"model": "1" * 64, "mass": 0.5}
