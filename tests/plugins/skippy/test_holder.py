"""What a node that holds stages takes from whom, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from meshnode_skippy import lease
from meshnode_skippy.holder import Holder
from meshnode_skippy.lease import (
    Hello,
    LoadStage,
    Prepared,
    Renew,
)

from p2p_mesh.core.records import ModelFile
from p2p_mesh.errors import EngineDied, RemoteError, Unavailable
from tests.plugins.skippy.asking import RUN, SECRET, A, held, leased, linked, prepare
from tests.plugins.skippy.town import Neighbour, Town


@pytest.mark.parametrize("first", [LoadStage(), Renew(), Hello(
    run=RUN, stage=1, secret=SECRET, epoch=1)])  # fmt: skip
async def test_a_lease_begins_with_prepare(first: Any, pair: Town) -> None:
    async with leased(pair, first) as asker:
        with pytest.raises(RemoteError, match="malformed"):
            await asker.hear()


async def test_a_peer_has_so_many_leases(
    pair: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASES_OF_A_PEER", 1)
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        async with leased(pair, await prepare(pair, deep, run=b"t" * 16)) as another:
            with pytest.raises(Unavailable, match="as many stages as it may"):
                await another.hear()
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)


async def test_one_stage_of_a_run_is_held_once(pair: Town, deep: ModelFile) -> None:
    async with leased(pair, await prepare(pair, deep)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        async with leased(pair, await prepare(pair, deep)) as another:
            with pytest.raises(RemoteError, match="held already"):
                await another.hear()


async def test_who_says_nothing_at_first_is_left(
    pair: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "JOIN", 0.05)
    async with leased(pair) as asker:
        with pytest.raises(Unavailable, match="nothing came within"):
            await asker.hear()


async def test_a_link_needs_the_secret_of_a_stage_that_is_held(pair: Town, deep: ModelFile) -> None:
    async with linked(pair) as stream:
        with pytest.raises(Unavailable, match="does not hold"):
            lease.read_welcome(await stream.receive())
    async with held(pair, deep):
        async with linked(pair, secret=b"x" * 16) as stream:
            with pytest.raises(RemoteError, match="the secret"):
                lease.read_welcome(await stream.receive())
        async with linked(pair) as stream:
            lease.read_welcome(await stream.receive())


async def test_a_worker_that_is_not_there_is_an_engine_that_died(pair: Town) -> None:
    with pytest.raises(EngineDied):
        Holder(pair.nodes[A]).process(RUN, 0)


def test_neighbours_are_meshes(town: Town) -> None:
    assert isinstance(town.node("a"), Neighbour)
