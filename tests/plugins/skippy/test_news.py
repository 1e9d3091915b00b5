"""What is said of stages, and in whose names."""

from __future__ import annotations

import pytest
from meshnode_skippy import news
from meshnode_skippy.lease import Prepare

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.errors import EngineDied
from tests.plugins.skippy.town import Town

ASKED = Prepare(
    run=b"r" * 16, secret=b"s" * 16, stage=1, stages=3, model="deep",
    package=PackageRef(manifest=Digest("0" * 64)), start=3, end=6, context=256, slots=1,
)  # fmt: skip


@pytest.mark.parametrize(("peer", "name"), [("a", "this node"), ("b", "b"), ("z", "z")])
def test_a_stage_is_held_for_somebody(peer: str, name: str, town: Town) -> None:
    here, _ = town.node("a"), town.node("b")
    with news.held(here, ASKED, PeerId(peer)):
        assert here.said.pop() == ("stage_held", f"holding layers 3-5 of deep for {name}")
    assert here.said == [
        ("stage_released", f"no longer holding layers 3-5 of deep for {name}: its lease has "
         "ended")
    ]  # fmt: skip


def test_what_ended_a_stage_is_told(town: Town) -> None:
    here = town.node("a")
    with pytest.raises(EngineDied), news.held(here, ASKED, PeerId("a")):
        raise EngineDied("it was killed")
    assert here.said[-1][1].endswith("for this node: it was killed")


def test_a_link_that_broke_is_told(town: Town) -> None:
    here = town.node("a")
    news.parted(here, "deep", "the stream has ended")
    assert here.said == [
        ("stages_parted", "the stages of deep are joined anew: the stream has ended")
    ]
