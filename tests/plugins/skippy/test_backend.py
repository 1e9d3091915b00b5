"""A model in stages, from what it takes to its answers: with stand-ins for the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace as changed
from typing import Any

import psutil
import pytest
import trio
from meshnode_skippy import coordinator, process
from meshnode_skippy.backend import Skippy, SplitEngine
from meshnode_skippy.lease import ACTIVATIONS, STAGE
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import InferenceRequest, ModelFile, Resources, TokenPrompt
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.errors import EngineDied, MeshError, ModelError, Unavailable
from p2p_mesh.serve.backend import Attached, Expects, Fit, Load, Refusal
from p2p_mesh.settings import cache_dir
from tests.plugins.skippy.stand_in import TOKENS
from tests.plugins.skippy.town import Town, until

RESOURCES = Resources(memory_total=1, memory_free=1, threads=1)
LAYERS = 9


def wanted(model: ModelFile, **more: Any) -> Load:
    return Load(model, split=True, context=512, slots=2, threads=1, **more)


def pinned(*cuts: int, nodes: str = "abc", model: str = "deep", manifest: str = "") -> Topology:
    stages = tuple(
        Stage(node=PeerId(node), layer_start=start, layer_end=end)
        for node, start, end in zip(nodes, (0, *cuts), (*cuts, LAYERS), strict=False)
    )
    return Topology(model=model, manifest_sha256=manifest, stages=stages)


async def three(town: Town, deep: ModelFile, more: str = "") -> Load:
    """A town of three nodes and some more, and a load of three layers for each of the three."""
    for name in f"abc{more}":
        town.node(name)
    manifest = (await town.packages.opened(deep.path)).ref.manifest
    return wanted(deep, topology=pinned(3, 6, manifest=manifest))


def opened(town: Town, load: Load) -> AbstractAsyncContextManager[SplitEngine]:
    here = town.nodes[PeerId("a")]
    return here.skippy.open(load, here)


def right(start: int) -> list[int]:
    """What an answer has to be where each layer is passed once."""
    found = []
    for _ in range(TOKENS):
        for _ in range(LAYERS):
            start = (start * 31 + 7) % 1009
        found.append(start)
    return found


def ask(start: int) -> InferenceRequest:
    prompt = TokenPrompt(tokens=(start,))
    return InferenceRequest(id=RequestId("r"), model=ModelId("deep"), prompt=prompt)


@asynccontextmanager
async def answers(engine: SplitEngine, count: int = 3) -> AsyncIterator[list[list[int]]]:
    """Answers that are all under way."""
    found: list[list[int]] = [[] for _ in range(count)]

    async def one(number: int) -> None:
        async with engine.generate(ask(number)) as deltas:
            async for delta in deltas:
                found[number] += delta.tokens

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, number)
            await until(lambda: all(found))
            yield found


def workers(town: Town) -> list[psutil.Process]:
    """The workers, by stage."""
    found = [one for one in psutil.Process().children() if town.worker in one.cmdline()]
    return sorted(found, key=lambda one: one.pid)


async def no_workers(town: Town) -> None:
    await until(lambda: not workers(town))


def free(town: Town) -> bool:
    return all(not one.memory._leased for one in town.nodes.values())


def test_what_can_be_cut_fits_anywhere(deep: ModelFile) -> None:
    fit = Skippy().assess(Load(deep), RESOURCES)
    assert fit == Fit(context=0, slots=0, memory_bytes=0, choice="stages")
    assert isinstance(Skippy().assess(Load(deep, context=256, slots=3), RESOURCES), Fit)


@pytest.mark.parametrize(
    ("fields", "more", "reason"),
    [
        ({"architecture": "bert"}, {}, "models of bert cannot be cut"),
        ({}, {"context": 10**6}, "was trained for"),
        ({}, {"projector": True}, "with a projector"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(
    fields: dict[str, Any], more: dict[str, Any], reason: str, deep: ModelFile
) -> None:
    if "projector" in more:
        more = {"projector": deep}
    refusal = Skippy().assess(Load(replace(deep, **fields), **more), RESOURCES)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


async def test_plan_that_no_node_can_help_with_is_not_waited_for(
    town: Town, deep: ModelFile
) -> None:
    for name in "abc":
        town.node(name)
    load = wanted(deep, topology=pinned(3, 6, manifest="0" * 64))
    with pytest.raises(ModelError, match="another package"):
        async with opened(town, load):
            pass


async def test_it_expects_what_the_nodes_make_of_it_that_are_there(
    town: Town, deep: ModelFile
) -> None:
    here, load = town.node("a"), Load(deep)
    assert isinstance(here.skippy, Expects)
    alone = await here.skippy.expect(load, RESOURCES, here)
    assert isinstance(alone, Refusal)
    assert (alone.is_final, "no other node" in alone.reason) == (False, True)
    assert here.package_of == {}
    town.node("b")
    found = await here.skippy.expect(load, RESOURCES, here)
    assert isinstance(found, Fit)
    assert (found.choice, found.memory_bytes) == ("stages", 0)
    assert found.context > 0
    assert found.tokens_per_second is not None
    assert free(town)


async def test_it_expects_nothing_of_nodes_that_are_too_small(town: Town, deep: ModelFile) -> None:
    here, _ = town.node("a", memory=1), town.node("b", memory=1)
    with pytest.raises(Unavailable, match="free"):
        await here.skippy.expect(Load(deep), RESOURCES, here)


def test_it_wants_to_see_the_mesh_at_the_start() -> None:
    assert isinstance(Skippy(), Attached)


async def test_three_nodes_answer_as_one(town: Town, deep: ModelFile) -> None:
    seen: list[float] = []
    load = await three(town, deep)
    async with opened(town, changed(load, progress=seen.append)) as engine:
        async with answers(engine) as found:
            pass
        about = engine.describe()
        assert not free(town)
    assert found == [right(number) for number in range(3)]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert about.numerics == "stand-in stages 0-3-6-9 f32"
    assert "layers 0-2 here, layers 3-5 on b, layers 6-8 on c" in about.notes[-1]
    assert (about.context, about.slots) == (512, 2)
    await no_workers(town)
    assert free(town)


async def test_each_node_gets_the_parts_that_it_needs(town: Town, deep: ModelFile) -> None:
    load = await three(town, deep)
    async with opened(town, load):
        fetched = [
            sorted({path for paths in one.package_of.popitem()[1].fetched for path in paths})
            for one in town.nodes.values()
        ]
    layers = [[path for path in one if path.startswith("layers/")] for one in fetched]
    assert [len(one) for one in layers] == [3, 3, 3]
    assert ["shared/embeddings.gguf" in one for one in fetched] == [True, False, False]
    assert ["shared/output.gguf" in one for one in fetched] == [False, False, True]


async def test_a_composed_stage_is_kept_and_used_again(town: Town, deep: ModelFile) -> None:
    load = await three(town, deep)
    async with opened(town, load):
        pass
    files = sorted((cache_dir() / "stages").rglob("*.gguf"))
    assert [one.name.rsplit("-", 1)[0] for one in files] == ["0-3", "3-6", "6-9"]
    before = [one.stat().st_mtime_ns for one in files]
    async with opened(town, load):
        pass
    assert [one.stat().st_mtime_ns for one in files] == before


async def test_the_planner_finds_the_nodes(town: Town, deep: ModelFile) -> None:
    for name in "abc":
        town.node(name)
    async with opened(town, wanted(deep)) as engine, answers(engine) as found:
        pass
    assert found == [right(number) for number in range(3)]


async def test_a_worker_that_dies_is_replaced_and_no_answer_with_it(
    town: Town, deep: ModelFile
) -> None:
    async with opened(town, await three(town, deep)) as engine:
        stages = workers(town)
        async with answers(engine) as found:
            by_links = [one for one in stages if one.pid != engine.describe().pid]
            os.kill(by_links[0].pid, signal.SIGKILL)
        assert found == [right(number) for number in range(3)]
        assert engine.describe().pid in [one.pid for one in stages]


async def test_a_worker_that_is_frozen_is_replaced_and_no_answer_with_it(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "QUIET", 1.0)
    monkeypatch.setattr(process, "PING_EVERY", 0.05)
    async with opened(town, await three(town, deep)) as engine:
        frozen = next(one for one in workers(town) if one.pid != engine.describe().pid)
        async with answers(engine) as found:
            frozen.suspend()
        assert found == [right(number) for number in range(3)]
        assert not frozen.is_running()
    said = [event for event, _ in town.nodes[PeerId("a")].said]
    assert said == ["stage_held", "stage_lost", "stages_joined", "stage_released"]


async def test_a_node_that_dies_is_replaced_by_another(town: Town, deep: ModelFile) -> None:
    for name in "abcd":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        lost = engine._ring.plan.places[1].peer
        async with answers(engine) as found:
            town.nodes[lost].vanish()
        assert found == [right(number) for number in range(3)]
        assert lost not in [place.peer for place in engine._ring.plan.places]
        taken = engine._ring.plan.places[1]
    lines = dict(town.nodes[PeerId("a")].said)
    assert f"replaces them: {lost}: the stream was cut" in lines["stage_lost"]
    assert f" s, layers {taken.start}-{taken.end - 1} on {taken.peer}" in lines["stages_joined"]


async def test_a_node_that_nobody_can_replace_ends_the_engine_in_words(
    town: Town, deep: ModelFile
) -> None:
    async with opened(town, await three(town, deep)) as engine:
        async with engine.generate(ask(1)) as deltas:
            town.nodes[PeerId("b")].vanish()
            with pytest.raises(EngineDied, match="layers 3-5 were lost: b: "):
                assert [delta async for delta in deltas] == []
        assert "names no other node" in await engine.wait_ended()
    await no_workers(town)
    assert free(town)


async def test_links_that_break_are_made_anew(town: Town, deep: ModelFile) -> None:
    async with opened(town, await three(town, deep)) as engine:
        async with answers(engine) as found:
            town.cut(PeerId("c"), ACTIVATIONS)
        assert found == [right(number) for number in range(3)]
    assert [event for event, _ in town.nodes[PeerId("a")].said[1:-1]] == [
        "stages_parted",
        "stages_joined",
    ]


async def test_a_lease_that_is_cut_is_taken_anew(town: Town, deep: ModelFile) -> None:
    town.node("d")
    for name in "abc":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        peer = engine._ring.plan.places[1].peer
        async with answers(engine) as found:
            town.cut(peer, STAGE)
        assert found == [right(number) for number in range(3)]


async def test_the_first_stages_end_is_the_engines(town: Town, deep: ModelFile) -> None:
    async with opened(town, await three(town, deep)) as engine:
        pid = engine.describe().pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(5):
            assert "SIGKILL" in await engine.wait_ended()
        with pytest.raises(EngineDied):
            async with engine.generate(ask(1)):
                pass
    await no_workers(town)


async def test_what_dies_again_and_again_ends_the_engine(
    town: Town, deep: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "MENDS", 1)
    async with opened(town, await three(town, deep)) as engine:
        own = engine.describe().pid
        for _ in range(2):
            await until(engine._ring._is_whole)
            os.kill(next(one.pid for one in workers(town) if one.pid != own), signal.SIGKILL)
            await until(lambda: not engine._ring._is_whole())
        with trio.fail_after(5):
            assert "lost 1 times in a row" in await engine.wait_ended()


async def test_nodes_that_are_missing_are_named(town: Town, deep: ModelFile) -> None:
    town.node("a")
    with pytest.raises(Unavailable):
        async with opened(town, wanted(deep)):
            pass


async def test_a_bad_model_is_the_models_fault(town: Town, deep: ModelFile) -> None:
    for name in "abc":
        town.node(name)
    with pytest.raises(MeshError, match="it is a bad model"):
        async with opened(town, wanted(replace(deep, id=ModelId("bad")))):
            pass
    assert free(town)


async def test_a_node_that_cannot_is_left_out_of_the_next_plan(town: Town, deep: ModelFile) -> None:
    for name in "abcd":
        town.node(name)
    async with opened(town, wanted(deep)) as engine:
        second = engine._ring.plan.places[1].peer

    async def refuse(wanted: object) -> Any:
        raise ModelError("the disk may hold no more")

    town.nodes[second].package = refuse  # type: ignore[method-assign]
    async with opened(town, wanted(deep)) as engine:
        assert second not in [place.peer for place in engine._ring.plan.places]
