"""The backend of shards, on a real engine where one is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from meshnode_expert_shards import backend as backends
from meshnode_expert_shards import following, meshnode_backends, participants
from meshnode_expert_shards.backend import ExpertShards
from meshnode_expert_shards.memory import seat
from meshnode_expert_shards.rankings import RANKING, Ranked, keep, kept
from msgspec import structs

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    Held,
    InferenceRequest,
    ModelFile,
    Resources,
    Sampling,
    Shard,
    TextPrompt,
)
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Attached, Backend, Expects, Fit, Load, Refusal
from p2p_mesh.testing.models import write_model
from tests.plugins.expert_shards.street import GIGABYTE, Neighbour, Street

A, B = PeerId("a"), PeerId("b")
QUESTION = InferenceRequest(
    id=RequestId("1"), model=ModelId("moe"), prompt=TextPrompt(text="hello"), max_tokens=8,
    sampling=Sampling(temperature=0.0),
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "GATHER", 0.01)


@pytest.fixture
def load(moe: ModelFile) -> Load:
    """As a node opens it that has leased what two thirds of the experts take."""
    wanted = Load(moe, context=256, slots=1, threads=1, shards=True, min_mass=0.5)

    def room(memory: int) -> int:
        found = seat(wanted, memory)
        return found.room if isinstance(found, Fit) else 0

    enough = moe.expert_bytes * 34 // 48
    limit = next(memory for memory in range(90_000_000, GIGABYTE, 10_000)
                 if room(memory) >= enough)  # fmt: skip
    assert room(limit) < moe.expert_bytes
    return replace(wanted, memory_limit=limit)


@pytest.fixture
def pair(street: Street, moe: ModelFile) -> tuple[Neighbour, Neighbour]:
    """Two nodes that take part, each with room for two thirds."""
    held = Held(id=moe.id, digest=moe.digest, shards=moe.expert_bytes * 34 // 48)
    return street.node("a", held), street.node("b", held)


def resources(memory: int = GIGABYTE) -> Resources:
    return Resources(memory_total=memory, memory_free=memory, threads=1)


def test_plugin_brings_the_backend() -> None:
    (found,) = meshnode_backends()
    assert isinstance(found, ExpertShards)
    typed: Backend = found
    assert typed.name == "expert_shards"
    assert isinstance(found, Attached)
    assert isinstance(found, Expects)


def test_what_is_no_mixture_or_no_whole_is_refused(moe: ModelFile, tmp_path: Path) -> None:
    dense = write_model(tmp_path / "dense.gguf")
    found = ExpertShards().assess(Load(dense), resources())
    assert found == Refusal("dense is no mixture of experts.")
    shard = structs.replace(moe, shard=Shard(model=Digest("a" * 64), mass=0.9))
    found = ExpertShards().assess(Load(shard), resources())
    assert found == Refusal("moe is an expert shard itself.")


@pytest.mark.parametrize("shards", [True, False])
def test_what_fits_has_room_within_what_it_may_take(load: Load, shards: bool) -> None:
    found = ExpertShards().assess(replace(load, shards=shards), resources())
    assert isinstance(found, Fit)
    assert (found.choice, found.is_split) == ("shards", True)
    assert 0 < found.room < load.model.expert_bytes
    assert load.memory_limit is not None
    assert found.memory_bytes <= load.memory_limit
    small = ExpertShards().assess(load, resources(10**6))
    assert isinstance(small, Refusal)


async def test_node_shares_its_rankings(street: Street, ranking: Ranking, experts: Layout) -> None:
    first, second = street.node("a"), street.node("b")
    ExpertShards().attach(first)
    keep(Ranked.of(ranking))
    async with second.open_stream(A, RANKING):
        pass
    assert kept(ranking.model) is not None


async def test_expectation_names_nodes_and_what_each_keeps(
    pair: tuple[Neighbour, Neighbour], load: Load, ranking: Ranking
) -> None:
    keep(Ranked.of(ranking))
    me, _ = pair
    me.memory.learn(1e9)
    found = await ExpertShards().expect(load, me.resources(), me)
    assert isinstance(found, Fit)
    assert found.mass is not None
    assert 0.85 < found.mass < 1
    assert found.tokens_per_second is not None
    assert found.tokens_per_second > 1
    details = dict(found.details)
    first, second = details.pop("nodes")
    assert details == {"ranking": True, "experts": 48, "experts_kept": 32, "whole_here": True}
    assert (first["node"], first["name"], second["name"]) == (A, "node a", "node b")
    assert 0 < first["size_bytes"] < load.model.size_bytes


async def test_what_is_missing_is_said(
    street: Street, pair: tuple[Neighbour, Neighbour], load: Load, ranking: Ranking
) -> None:
    me, other = pair
    found = await ExpertShards().expect(load, me.resources(), me)
    assert isinstance(found, Refusal)
    assert "no ranking" in found.reason
    assert "meshnode experts analyze" in found.advice
    keep(Ranked.of(ranking))
    found = await ExpertShards().expect(replace(load, min_mass=0.99), me.resources(), me)
    assert isinstance(found, Refusal)
    assert "0.99" in found.reason
    other.held = ()
    found = await ExpertShards().expect(load, me.resources(), me)
    assert isinstance(found, Refusal)
    assert "--shards" in found.advice
    found = await ExpertShards().expect(replace(load, memory_limit=10**6), me.resources(), me)
    assert isinstance(found, Refusal)
    assert "No expert shard" in found.reason


async def test_node_beside_larger_ones_is_told_so(
    street: Street, pair: tuple[Neighbour, Neighbour], load: Load, ranking: Ranking
) -> None:
    keep(Ranked.of(ranking))
    small = street.node("c")
    free = replace(load, memory_limit=None)
    least = next(memory for memory in range(load.memory_limit or 0, 0, -10_000)
                 if not isinstance(seat(free, memory), Fit))  # fmt: skip
    tight = replace(load, memory_limit=least + 50_000)
    found = await ExpertShards().expect(tight, small.resources(), small)
    assert isinstance(found, Refusal)
    assert "beside the others" in found.reason


async def answer(engine: Any) -> list[int]:
    tokens: list[int] = []
    async with engine.generate(QUESTION) as deltas:
        async for delta in deltas:
            tokens += delta.tokens
    return tokens


async def test_each_of_two_answers_with_its_part_and_comes_back_with_it(
    pair: tuple[Neighbour, Neighbour], load: Load, ranking: Ranking
) -> None:
    keep(Ranked.of(ranking))
    shares: list[float] = []
    load, backend = replace(load, progress=shares.append), ExpertShards()
    async with backend.open(load, pair[0]) as engine:
        about = engine.describe()
        assert about.shard == Shard(model=ranking.model, mass=engine.held.part.mass)
        assert about.digest not in (None, load.model.digest)
        assert "expert shard 1 of 2: 32 of 48 experts" in about.notes[-1]
        assert len(await answer(engine)) == 8
        assert not [note for note in about.notes if "not weighed" in note]
        built, routers = engine.held.built, engine.held.routers
        assert routers is not None
        assert routers.path.exists(), "it is in use, as the shard is"
    assert shares == sorted(shares)
    pair[1].held = ()  # gone, and it goes on with what it had
    async with backend.open(load, pair[0]) as engine:
        assert engine.held.built == built


async def test_engine_goes_over_to_another_part_when_a_node_comes(
    street: Street, pair: tuple[Neighbour, Neighbour], load: Load, ranking: Ranking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module, name in ((following, "LOOK"), (participants, "QUIET"), (participants, "APART")):
        monkeypatch.setattr(module, name, 0.01)
    keep(Ranked.of(ranking))
    backend = ExpertShards(settle=0.05)
    async with backend.open(load, pair[1]) as engine:
        first = engine.held.built
        street.node("c", *pair[0].held)
        with trio.fail_after(20):
            reason = await engine.wait_ended()
        assert reason == "3 take part now, and it goes over to expert shard 2 of 3"
        assert engine.is_outdated
    async with backend.open(load, pair[1]) as engine:
        assert "expert shard 2 of 3" in engine.describe().notes[-1]
        assert first is not None
        assert engine.held.built not in (None, first)
        assert not first.path.exists()
        assert len(await answer(engine)) == 8


async def test_all_experts_are_served_from_the_file_itself(
    street: Street, load: Load, ranking: Ranking
) -> None:
    keep(Ranked.of(ranking))
    load = replace(load, memory_limit=GIGABYTE)
    async with ExpertShards().open(load, street.node("a")) as engine:
        assert engine.describe().shard is None
        assert engine.held.built is None


async def test_nodes_that_are_too_few_are_waited_for(
    street: Street, load: Load, ranking: Ranking, tmp_path: Path
) -> None:
    keep(Ranked.of(ranking))
    with pytest.raises(Unavailable, match="too few nodes"):
        async with ExpertShards().open(load, street.node("a")):
            pass
    elsewhere = replace(load, model=structs.replace(load.model, path=str(tmp_path)))
    with pytest.raises(Unavailable, match="no other node yet"):
        async with ExpertShards().open(elsewhere, street.node("a")):
            pass


async def test_what_fits_in_no_way_is_not_opened(street: Street, load: Load) -> None:
    with pytest.raises(ModelError, match="No expert shard"):
        async with ExpertShards().open(replace(load, memory_limit=10**6), street.node("a")):
            pass


async def test_model_that_nobody_measured_is_measured_in_short(
    street: Street, load: Load, monkeypatch: pytest.MonkeyPatch, experts: Layout
) -> None:
    monkeypatch.setattr(backends, "COUNTED", 64)
    load = replace(load, memory_limit=GIGABYTE)
    async with ExpertShards().open(load, street.node("a")):
        pass
    assert load.model.digest is not None
    found = await trio.to_thread.run_sync(kept, load.model.digest)
    assert found is not None
    assert found.ranking.tokens > 0


async def test_model_that_nobody_measured_and_is_not_here_waits(
    street: Street, load: Load, tmp_path: Path
) -> None:
    me = street.node("a")
    street.node("b")
    package = await me.package(load.model)
    folder = replace(load, model=structs.replace(load.model, path=str(tmp_path)))
    me.packages[str(tmp_path)] = package  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="meshnode experts analyze"):
        async with ExpertShards().open(folder, me):
            pass
