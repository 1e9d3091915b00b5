"""Who can hold a stage, and why not."""

from typing import Any

import pytest

from p2p_mesh.core.costs import Layer, StageModel
from p2p_mesh.core.names import Digest, ModelId, PeerId
from p2p_mesh.core.records import Announcement, Resources, ServedModel, Shard
from p2p_mesh.core.sites import BANDWIDTH, ROUND_TRIP, Site, here, objection, site

RESOURCES = Resources(memory_total=9, memory_free=7, threads=2, bandwidth=3e9)
PEER = PeerId("12D3-bob")
MODEL = StageModel("m", "", (Layer(10**9),))


def announced(**changes: Any) -> Announcement:
    values: dict[str, Any] = {
        "sequence": (1, 1), "issued_at": 1.0, "lifetime": 60.0, "name": "bob", "version": "1.2",
        "resources": RESOURCES, "backends": ("llama_cpp", "skippy"),
    }  # fmt: skip
    return Announcement(**values | changes)


def objected(one: Site, need: int = 5) -> str:
    return objection(one, "the stage", need, most_round_trip=0.08)


def test_node_is_seen_as_it_announced_itself() -> None:
    found = site(PEER, announced(), round_trip=0.01)
    assert (found.label, found.free, found.speed, found.distance) == ("bob", 7, 3e9, 0.01)
    assert objected(found) == ""


def test_this_node_is_no_way_from_itself() -> None:
    found = here(PEER, RESOURCES)
    assert (found.label, found.distance, found.speed) == ("this node", 0, 3e9)
    assert objected(found) == ""


def test_nobody_is_infinitely_slow() -> None:
    assert 10**15 / Site(PEER, bandwidth=5e-324).speed < float("inf")


def test_what_was_not_measured_is_assumed() -> None:
    found = Site(PEER)
    assert (found.distance, found.speed) == (ROUND_TRIP, BANDWIDTH)


@pytest.mark.parametrize(
    ("numerics", "speed", "expected"),
    [("cpu", 5.0, 5e9), ("cpu stages 4", 5.0, 3e9), ("cpu", 0.0, 3e9)],
)
def test_measured_speed_of_the_whole_model_counts_before_the_bandwidth(
    numerics: str, speed: float, expected: float
) -> None:
    served = ServedModel(id=ModelId("m"), context=8, slots=1, numerics=numerics, speed=speed)
    other = ServedModel(id=ModelId("other"), context=8, slots=1, speed=99.0)
    about = announced(models=(other, served))
    assert site(PEER, about, round_trip=0.01, model=MODEL).speed == expected
    assert site(PEER, about, round_trip=0.01).speed == 3e9


def test_speed_of_a_shard_is_not_that_of_the_whole_model() -> None:
    shard = Shard(model=Digest("1" * 64), mass=0.9)
    served = ServedModel(id=ModelId("m"), context=8, slots=1, speed=5.0, shard=shard)
    assert site(PEER, announced(models=(served,)), round_trip=0.01, model=MODEL).speed == 3e9


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Site(PEER, role="client"), "client"),
        (Site(PEER, is_suspect=True), "does not answer"),
        (Site(PEER, backends=(), version="0.3"), "knows no stages: it runs meshnode 0.3"),
        (Site(PEER, backends=("llama_cpp",)), "not the backend skippy; it has: llama_cpp"),
        (Site(PEER, backends=(), is_here=True), "it has: none"),
        (Site(PEER, round_trip=0.12, free=9), "120 ms is over the 80 ms"),
        (Site(PEER, free=10**9), "takes 5.00 GB, and it has 1.00 GB free: 4.00 GB are missing"),
    ],
)
def test_reason_is_said_with_its_numbers(one: Site, words: str) -> None:
    assert words in objected(one, 5 * 10**9)
