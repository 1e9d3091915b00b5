"""An engine of a shard says what it has, is busy or idle, and ends so as to be opened anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from meshnode_expert_shards.building import Built, Whole
from meshnode_expert_shards.engine import Held, ShardEngine
from meshnode_expert_shards.participants import Division, Participant, divide
from meshnode_expert_shards.parts import Parts
from meshnode_expert_shards.running import WeighingEngine

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import Ranking
from p2p_mesh.core.gguf import Header
from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import DetokenizeQuery, InferenceRequest, Shard, Text, TextPrompt
from p2p_mesh.serve.backend import Engine, Renewable
from tests.plugins.expert_shards.inner import inner

A, B = PeerId("a"), PeerId("b")
FILE = Built(Path("shard.gguf"), 100, Digest("c" * 64))
QUESTION = InferenceRequest(id=RequestId("1"), model=ModelId("moe"), prompt=TextPrompt(text="a"))


def divided(experts: Layout, ranking: Ranking, keep: int) -> Division:
    room = keep * experts.bytes_per_expert
    people = [Participant(peer, room) for peer in (A, B)]
    found = divide(ranking, experts, people, min_mass=0)
    assert isinstance(found, Division)
    return found


@pytest.fixture
def held(experts: Layout, ranking: Ranking) -> Held:
    package: Any = None
    whole = Whole(package, ranking.model, Header({}, ()), experts, {})
    return Held(whole, divided(experts, ranking, 32), B, FILE)


async def test_shard_says_what_it_has(held: Held, ranking: Ranking) -> None:
    engine: Engine = ShardEngine(inner(), held)
    about = engine.describe()
    note = "expert shard 2 of 2: 32 of 48 experts a layer, 0.90 of the routing"
    assert about.notes == ("a note", note)
    assert about.shard == Shard(model=ranking.model, mass=held.part.mass)
    assert about.digest == FILE.sha256
    assert (about.context, about.slots) == (512, 2)


async def test_shards_of_other_files_never_compute_alike(held: Held) -> None:
    other = replace(held, built=replace(FILE, sha256=Digest("d" * 64)))
    found = {ShardEngine(inner(), one).describe().numerics for one in (held, other)}
    assert found == {f"cpu f16 shard {'c' * 16}", f"cpu f16 shard {'d' * 16}"}


async def test_all_experts_are_the_whole_model(held: Held) -> None:
    engine = ShardEngine(inner(), replace(held, built=None))
    about = engine.describe()
    assert (about.shard, about.digest, about.numerics) == (None, None, "cpu f16")
    assert about.notes[-1] == "all 48 experts, as 1 of 2 nodes"


async def test_other_numbers_of_the_same_part_are_told(
    held: Held, experts: Layout, ranking: Ranking
) -> None:
    engine = ShardEngine(inner(), held)
    engine.held = replace(held, peer=A)
    assert "expert shard 1 of 2" in engine.describe().notes[-1]


async def test_engine_that_weighs_is_told_who_takes_part(held: Held) -> None:
    told: list[Parts] = []

    class Weighing(WeighingEngine):
        def __init__(self) -> None:
            pass

        def deal(self, parts: Parts) -> None:
            told.append(parts)

    engine, plain = ShardEngine(Weighing(), held), ShardEngine(inner(), held)
    fewer = replace(held.division, participants=held.division.participants[::-1])
    for one in (engine, plain):
        one.divided(fewer)
        assert one.held.division == fewer
    (parts,) = told
    assert (parts.own, parts.peers) == (0, ("b", "a"))
    assert len(parts.experts) == 2


async def test_engine_is_busy_with_answers_and_idle_after(
    held: Held, autojump_clock: trio.testing.MockClock
) -> None:
    engine = ShardEngine(inner(), held)
    assert not engine.is_busy
    async with engine.generate(QUESTION) as first:
        assert [delta.text async for delta in first] == ["hello"]
        async with engine.generate(QUESTION):
            await trio.sleep(5)
        assert engine.is_busy
    assert not engine.is_busy
    assert engine.idle_since == trio.current_time()
    asked = DetokenizeQuery(model=ModelId("moe"), tokens=())
    assert await engine.query(asked) == Text(text="hello")


async def test_answer_that_fails_is_over(held: Held) -> None:
    engine = ShardEngine(inner(), held)
    with pytest.raises(ValueError, match="bad"):
        async with engine.generate(QUESTION):
            raise ValueError("bad")
    assert not engine.is_busy


async def test_engine_ends_by_itself_or_to_be_opened_anew(held: Held) -> None:
    closed, renewed = ShardEngine(inner(), held), ShardEngine(inner(), held)
    assert isinstance(closed, Renewable)
    await closed.close()
    assert await closed.wait_ended() == "the engine of moe was closed"
    assert not closed.is_outdated
    await renewed.renew("3 nodes take part now")
    assert (await renewed.wait_ended(), renewed.is_outdated) == ("3 nodes take part now", True)
