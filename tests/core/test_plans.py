"""The plan as it is said, kept and read again."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.costs import HOP
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.plans import (
    Excluded,
    Impossible,
    Place,
    Plan,
    Stage,
    Topology,
    layers,
    read_topology,
)
from p2p_mesh.core.sites import Site
from p2p_mesh.errors import SettingsError

GB = 10**9
ME = Site(PeerId("me"), "alice", free=8 * GB, bandwidth=10e9, round_trip=0, is_here=True)
BOB = Site(PeerId("bob"), "bob", free=9 * GB, bandwidth=20e9, round_trip=0.02)
CAROL = Site(PeerId("carol"), free=9 * GB, round_trip=None)
PLAN = Plan(
    "m", "a" * 64, 4096, 2, 8192,
    places=(Place(ME, 0, 4, 3 * GB, GB), Place(BOB, 4, 8, 4 * GB, GB)),
)  # fmt: skip


def test_token_takes_what_is_computed_and_one_round_trip() -> None:
    assert PLAN.compute == pytest.approx(0.1 + 0.05)
    assert PLAN.delay == pytest.approx(0.02 + 2 * HOP)
    assert PLAN.tokens_per_second == pytest.approx(1 / (0.17 + 2 * HOP))


def test_further_stage_costs_one_way_and_its_computing() -> None:
    third = Place(BOB, 8, 9, GB, 0)
    longer = Plan("m", "", 1, 1, 0, places=(*PLAN.places, third))
    assert longer.seconds - PLAN.seconds == pytest.approx(0.01 + HOP)


def test_one_stage_is_on_no_way() -> None:
    alone = Plan("m", "", 1, 1, 0, places=PLAN.places[:1])
    assert (alone.delay, alone.seconds) == (0, 0.1)
    assert Plan("m", "", 1, 1, 0, places=(Place(ME, 0, 1, 0, 0),)).tokens_per_second == 0


def test_activations_take_time_on_a_slow_link() -> None:
    slow = Site(PeerId("slow"), free=9 * GB, bandwidth=20e9, round_trip=0.02, link=8192 * 100)
    plan = PLAN.with_place(1, Place(slow, 4, 8, 4 * GB, GB))
    assert plan.seconds - PLAN.seconds == pytest.approx(0.01)  # there, and not back


def test_place_tells_of_its_node() -> None:
    one = PLAN.places[1]
    assert (one.peer, one.name, one.is_here) == ("bob", "bob", False)
    assert (one.round_trip, one.free_bytes) == (0.02, 9 * GB)


def test_plan_says_who_holds_what_and_why() -> None:
    plan = Plan(
        "m", "", 4096, 2, 0,
        places=(*PLAN.places, Place(CAROL, 8, 9, GB, 0)),
        excluded=(Excluded(PeerId("x"), "dave", "it is a client"),),
        spare=(BOB,),
    )  # fmt: skip
    words = plan.words()
    assert words[0] == "m: 9 layers in 3 stages, a context of 4096 tokens, 2 at a time"
    assert words[1] == (
        "stage 0: layers 0-3 on alice (this node): 3.00 of 8.00 GB, 100.0 ms a token"
    )
    assert "round trip 20.0 ms" in words[2]
    assert "not measured" in words[3]
    assert "its speed a guess" in words[3]
    assert "expected: 4.7 tokens/s" in words[4]
    assert words[5:] == ["not needed: bob", "left out: dave: it is a client"]


def test_of_many_nodes_some_are_named() -> None:
    many = tuple(Excluded(PeerId("x"), f"n{number}", "too far") for number in range(25))
    plan = Plan("m", "", 1, 1, 0, places=PLAN.places[:1], excluded=many, spare=(BOB,) * 25)
    words = plan.words()
    assert words[3].endswith("bob, bob and 5 more")
    assert words[-1] == "left out: 5 more"
    assert len(words) == 2 + 1 + 1 + 21


def test_this_node_needs_no_name() -> None:
    nameless = Site(PeerId("me"), free=8 * GB, bandwidth=10e9, is_here=True)
    plan = PLAN.with_place(0, Place(nameless, 0, 4, 3 * GB, GB))
    assert "layers 0-3 on this node: 3.00 of" in plan.words()[1]


def test_impossible_says_what_would_help() -> None:
    assert str(Impossible("it does not fit.", "Add memory.")) == "it does not fit. Add memory."
    assert str(Impossible("no.")) == "no."


def test_plan_is_read_as_it_was_written() -> None:
    topology = PLAN.topology()
    assert [one.node for one in topology.stages] == ["me", "bob"]
    assert read_topology(msgspec.json.encode(topology)) == topology


def stages(*ends: tuple[int, int]) -> dict[str, Any]:
    return {
        "model": "m", "manifest_sha256": "a" * 64, "version": 1,
        "stages": [
            {"node": f"n{number}", "layer_start": start, "layer_end": end}
            for number, (start, end) in enumerate(ends)
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"model": "m"}, "manifest_sha256"),
        (stages(), "length >= 1"),
        (stages((0, 4), (5, 8)), "stage 1 .* begin at 4"),
        (stages((0, 4), (3, 8)), "begin at 4"),
        (stages((1, 4)), "begin at 0"),
        (stages((0, 0)), "one layer at least"),
        (stages((0, -1)), "layer_end"),
        (stages((0, 4)) | {"version": 2}, "version 2"),
        (stages((0, 4)) | {"manifest_sha256": "x"}, "64 hex digits"),
    ],
)
def test_what_is_no_plan_is_refused_in_words(written: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_topology(msgspec.json.encode(written))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(SettingsError):
        read_topology(data)


def test_stage_is_half_open() -> None:
    topology = Topology(
        model="m", manifest_sha256="a" * 64,
        stages=(Stage(node=PeerId("bob"), layer_start=0, layer_end=4),),
    )  # fmt: skip
    assert read_topology(msgspec.json.encode(topology)).stages[0].layer_end == 4


def test_layers_are_told_from_the_first_to_the_last() -> None:
    assert layers(0, 6) == "layers 0-5"
    assert layers(6, 7) == "layer 6"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest_sha256": "xx"}, "manifest_sha256 must be 64 hex digits"),
        ({"version": "x"}, "version must be int, got str"),
        ({"stages": []}, "stages must be array of length >= 1"),
        ({"stages": [{"node": "x"}]}, "stages[0] has no layer_start"),
        ({"stages": [{"node": "x", "layer_start": 1, "layer_end": 2}]}, "must begin at 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(
    changes: dict[str, object], words: str
) -> None:
    plan = {"version": 1, "model": "m", "manifest_sha256": "a" * 64,
            "stages": [{"node": "x", "layer_start": 0, "layer_end": 2}]}  # fmt: skip
    with pytest.raises(SettingsError) as caught:
        read_topology(json.dumps(plan | changes).encode(), "bad.json")
    assert str(caught.value).startswith("bad.json is no plan: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "it is no JSON"), (b'{"model": "\xff"}', "it is no JSON"), (b"{}", "it has no model"),
     (b"[]", "it must be object, got array")],
)  # fmt: skip
def test_what_is_no_plan_at_all_is_said(data: bytes, words: str) -> None:
    with pytest.raises(SettingsError, match=f"no plan: {words}"):
        read_topology(data)
