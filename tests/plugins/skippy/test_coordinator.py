"""Who is planned with, and what is done where a stage cannot be reached (the whole of it is in
test_backend.py).
"""

from __future__ import annotations

import pytest
import trio
from meshnode_skippy import coordinator
from meshnode_skippy.coordinator import sites
from meshnode_skippy.lease import ACTIVATIONS

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Stream
from tests.plugins.skippy.test_backend import answers, free, no_workers, opened, right, wanted
from tests.plugins.skippy.town import Town


def test_this_node_is_always_planned_with(town: Town) -> None:
    here, *_ = (town.node(name) for name in "abc")
    found = sites(here, without={PeerId("a"), PeerId("b")})
    assert [(one.peer, one.is_here) for one in found] == [("a", True), ("c", False)]
    assert found[0].name == "a"


async def test_a_node_whose_links_cannot_be_made_is_left_out(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(stream: Stream, peer: PeerId) -> None:
        raise Unavailable("no way in")

    monkeypatch.setattr(coordinator, "PAUSE", 0.01)
    for name in "abc":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        second = engine._ring.plan.places[1].peer
    town.nodes[second].serve(ACTIVATIONS, refuse)
    async with opened(town, wanted(deep)) as engine, answers(engine) as found:
        assert second not in [place.peer for place in engine._ring.plan.places]
    assert found == [right(number) for number in range(3)]


async def test_where_all_have_failed_their_reasons_are_told(town: Town, deep: ModelFile) -> None:
    async def refuse(wanted: object) -> None:
        raise Unavailable("the disk is full")

    for name in "abc":
        town.node(name)
    for name in "bc":
        town.nodes[PeerId(name)].package = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(Unavailable, match="b: the disk is full; c: the disk is full; "):
        async with opened(town, wanted(deep)):
            pass
    await no_workers(town)
    assert free(town)


async def test_a_replacement_that_fails_is_replaced_by_the_next_node(
    town: Town, deep: ModelFile
) -> None:
    async def refuse(wanted: object) -> None:
        asked.append(wanted)
        raise Unavailable("the disk is full")

    asked: list[object] = []
    for name in "abcde":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        held = [place.peer for place in engine._ring.plan.places]
        *others, last = [one for one in town.nodes if one not in held]
        for peer in others:
            town.nodes[peer].package = refuse  # type: ignore[method-assign, assignment]
        async with answers(engine) as found:
            town.nodes[held[1]].vanish()
        assert found == [right(number) for number in range(3)]
        assert engine._ring.plan.places[1].peer == last
    assert len(asked) == len(others)


async def test_no_node_is_tried_twice_before_the_ring_is_whole(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(stream: Stream, peer: PeerId) -> None:
        raise Unavailable("no way in")

    monkeypatch.setattr(coordinator, "PAUSE", 0.01)
    monkeypatch.setattr(coordinator, "MENDS", 1000)
    for name in "abcd":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        held = [place.peer for place in engine._ring.plan.places]
        for peer, node in town.nodes.items():
            if peer not in held:
                node.serve(ACTIVATIONS, refuse)
        town.nodes[held[1]].vanish()
        with trio.fail_after(20):
            assert "no other node can take" in await engine.wait_ended()
