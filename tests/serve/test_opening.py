"""How an engine is opened: within the memory that is free, by the backend that is best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.placement.choice import CLEARLY
from p2p_mesh.core.records import Choice, ModelFile, Resources
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.errors import EngineDied, ModelError, Unavailable
from p2p_mesh.serve.backend import Backend, Fit, Load, Mesh, Offer, Refusal
from p2p_mesh.serve.opening import ASKING, GATHERING, Memory, by_backend, by_source, choose
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh

RESOURCES = Resources(memory_total=100, memory_free=100, threads=2)
LOAD = Load(
    ModelFile(
        id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
        kv_bytes_per_token=1,
    )
)  # fmt: skip


async def test_two_leases_do_not_take_the_same() -> None:
    memory = Memory(RESOURCES)
    async with memory.lease(60):
        with pytest.raises(Unavailable, match="free"):
            async with memory.lease(60):
                pass


async def test_what_is_leased_and_given_back_is_told() -> None:
    seen: list[int] = []
    memory = Memory(RESOURCES, changed=lambda: seen.append(memory.free().memory_free))
    free = memory.free().memory_free
    async with memory.lease(60), memory.lease(0):
        assert seen == [free - 60]
    assert seen == [free - 60, free]


class Fixed(Echo):
    """A backend that assesses every model alike."""

    def __init__(self, found: Fit | Refusal) -> None:
        super().__init__()
        self.found = found

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        return self.found


def chosen(*found: Fit | Refusal) -> int | Refusal:
    backends: Sequence[Fixed] = [Fixed(one) for one in found]
    best = choose(backends, LOAD, RESOURCES)
    return best if isinstance(best, Refusal) else [one.found for one in backends].index(best[1])


def test_fastest_backend_is_chosen_then_the_longest_context() -> None:
    slow, fast = Fit(4096, 1, 1, tokens_per_second=5), Fit(1024, 1, 1, tokens_per_second=50)
    assert chosen(slow, fast) == 1
    assert chosen(Fit(1024, 1, 1), Refusal("no"), Fit(4096, 1, 1)) == 2


def test_whole_model_comes_before_a_split_one_but_where_stages_are_wanted() -> None:
    whole = Fit(1024, 1, 1, tokens_per_second=1)
    split = Fit(4096, 1, 0, tokens_per_second=9, choice="stages")
    assert chosen(split, whole) == 1
    assert chosen(Refusal("too big"), split) == 1
    topology = Topology(
        model="m", manifest_sha256="a" * 64,
        stages=(Stage(node=PeerId("bob"), layer_start=0, layer_end=1),),
    )  # fmt: skip
    for wanted in (replace(LOAD, split=True), replace(LOAD, topology=topology)):
        best = choose([Fixed(whole), Fixed(split)], wanted, RESOURCES)
        assert not isinstance(best, Refusal)
        assert best[1] == split
        refused = choose([Fixed(whole)], wanted, RESOURCES)
        assert isinstance(refused, Refusal)
        assert "does not cut models into stages" in refused.reason


async def test_way_of_a_split_model_says_so() -> None:
    backend = Fixed(Fit(8, 1, 0, choice="stages"))
    async with by_backend(LOAD, [backend], Memory(RESOURCES), NoMesh()) as way:
        assert way.is_split


def test_memory_is_as_fast_as_was_measured() -> None:
    memory = Memory(RESOURCES)
    memory.learn(5e9, 1e9)
    free = memory.free()
    assert (free.bandwidth, free.disk, free.memory_free) == (5e9, 1e9, 100)


def test_all_refusals_are_told() -> None:
    assert chosen(Refusal("too big", "buy memory"), Refusal("no GPU")) == Refusal(
        "too big; no GPU", "buy memory"
    )


@pytest.mark.parametrize("found", [None, 42, Fit(8, 1, 101)])
def test_backend_that_says_what_cannot_be_refuses_its_model(found: Any) -> None:
    refusal = chosen(found)
    assert isinstance(refusal, Refusal)
    assert "the backend echo" in refusal.reason


async def test_what_a_model_holds_is_known() -> None:
    memory = Memory(RESOURCES)
    async with by_backend(LOAD, [Echo(memory=60)], memory, NoMesh()), memory.lease(5):
        assert (memory.held(LOAD.model.id), memory.held(ModelId("x"))) == (60, 0)
    assert memory.held(LOAD.model.id) == 0


async def test_backend_gets_what_it_fitted_and_holds_its_memory() -> None:
    memory, told = Memory(RESOURCES), list[float]()
    backend = Echo(memory=60)
    async with by_backend(LOAD, [backend], memory, NoMesh()) as way:
        assert (way.maker, way.is_lasting) == ("its backend echo", False)
        assert memory.free().memory_free == 40
        async with way.open(told.append) as engine:
            assert (engine.describe().context, engine.describe().slots) == (1024, 2)
        assert told == [1.0]
    assert memory.free().memory_free == 100


async def test_model_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ModelError, match="there is too little memory free some"):
        async with by_backend(LOAD, [Echo(memory=101)], Memory(RESOURCES), NoMesh()):
            pass


async def test_offer_is_opened_as_it_says() -> None:
    echo = Echo()
    async with by_source(Offer(ModelId("m"), lambda: echo.open(LOAD, NoMesh()))) as way:
        assert (way.maker, way.is_lasting) == ("its source", True)
        async with way.open(lambda _: None) as engine:
            assert engine is echo.engines[0]


# Among several ways


class Ways(Fixed):
    """A backend that serves in one way, and knows what the mesh makes of it."""

    def __init__(self, name: str, found: Fit | Refusal, *expected: Any) -> None:
        super().__init__(found)
        self.name = name
        self.expected = list(expected)
        self.asked = 0

    async def expect(self, load: Load, resources: Resources, mesh: Mesh) -> Fit | Refusal:
        self.asked += 1
        found = self.expected.pop(0) if len(self.expected) > 1 else self.expected[0]
        if isinstance(found, Exception):
            raise found
        await trio.sleep(found if isinstance(found, float) else 0)
        return found  # type: ignore[no-any-return]


class Said(NoMesh):
    """A mesh whose log can be read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, event: str, text: str) -> None:
        self.lines.append(f"{event}: {text}")


TOO_LARGE = Fixed(Refusal("it is too large."))
FLASH = Fit(512, 1, 60, tokens_per_second=5, choice="flash")
STAGES = Fit(0, 0, 0, choice="stages")
SHARDS = Fit(512, 1, 0, choice="shards")
MISSING = Refusal("nodes are missing.")


def flash(found: Fit = FLASH) -> Fixed:
    made = Fixed(found)
    made.name = "flash_moe"
    return made


def expected(fit: Fit, speed: float | None, mass: float | None = None) -> Fit:
    return replace(fit, tokens_per_second=speed, mass=mass)


def skippy(*found: Any) -> Ways:
    return Ways("skippy", STAGES, *found)


def shards(*found: Any) -> Ways:
    return Ways("expert_shards", SHARDS, *found)


async def way(*backends: Backend, load: Load = LOAD, mesh: NoMesh | None = None) -> Choice:
    mesh = mesh or NoMesh()
    async with by_backend(load, [TOO_LARGE, *backends], Memory(RESOURCES), mesh) as found:
        return found.choice


@pytest.mark.parametrize(
    ("ways", "choice"),
    [
        ([skippy(expected(STAGES, 9.0)), flash()], "stages"),
        ([skippy(expected(STAGES, 2.0)), flash()], "flash"),
        ([flash(), shards(expected(SHARDS, 5 * CLEARLY, 0.99))], "shards"),
        ([flash(), shards(expected(SHARDS, 5 * CLEARLY, 0.5))], "flash"),
        ([flash(), shards(MISSING)], "flash"),
        ([shards(expected(SHARDS, None, 0.99))], "shards"),
        ([flash(), shards(ValueError("its defect"))], "flash"),
        ([flash(), shards(None)], "flash"),
        ([flash(), shards(EngineDied("gone"))], "flash"),
        ([flash(), shards(ModelError("never"))], "flash"),
        ([flash(), Fixed(STAGES)], "flash"),
        ([flash(), skippy(ASKING + 1)], "flash"),
    ],
)
async def test_fastest_way_that_can_begin_is_chosen(
    ways: Sequence[Any], choice: Choice, autojump_clock: MockClock
) -> None:
    assert await way(*ways) == choice


async def test_nodes_have_some_seconds_to_come(autojump_clock: MockClock) -> None:
    began, come = trio.current_time(), skippy(MISSING, Unavailable("x"), expected(STAGES, 9.0))
    assert await way(come, flash()) == "stages"
    assert trio.current_time() - began < GATHERING
    assert await way(gone := skippy(MISSING), flash()) == "flash"
    assert gone.asked > 2
    assert trio.current_time() - began < 2 * GATHERING + 1


async def test_stages_that_no_node_can_help_are_not_waited_for(autojump_clock: MockClock) -> None:
    never = skippy(replace(MISSING, is_final=True))
    assert await way(never, flash()) == "flash"
    assert never.asked == 1


async def test_where_nothing_can_begin_stages_wait(autojump_clock: MockClock) -> None:
    said = Said()
    assert await way(skippy(MISSING), shards(MISSING), mesh=said) == "stages"
    assert said.lines == []


async def test_nobody_is_asked_where_there_is_nothing_to_choose() -> None:
    alone = skippy(ValueError())
    assert await way(alone) == "stages"
    assert await way(alone, flash(), load=replace(LOAD, split=True)) == "stages"
    assert await way(alone, flash(), load=replace(LOAD, flash=True)) == "flash"
    assert await way(shards(ValueError()), load=replace(LOAD, shards=True)) == "shards"
    assert await way(alone, flash(), Fixed(Fit(8, 1, 1))) == "whole"
    assert alone.asked == 0


async def test_choice_and_its_reasons_are_said(autojump_clock: MockClock) -> None:
    said = Said()
    await way(skippy(expected(STAGES, 2.0)), flash(), mesh=said)
    assert said.lines == [
        "model_placed: m is served flash. flash: 5.0 tokens/s expected; whole: it is too large; "
        "in stages: 2.0 tokens/s expected"
    ]


async def test_model_that_can_be_served_in_no_way_is_refused_with_all_reasons() -> None:
    with pytest.raises(ModelError) as caught:
        await way(shards(expected(SHARDS, 5, 0.5)))
    assert str(caught.value) == (
        "m can be served in no way. whole: it is too large; by expert shards: it would keep 0.50 "
        "of the routing, and 0.98 are wanted at least"
    )


async def test_what_is_asked_for_is_refused_in_the_words_of_its_backend() -> None:
    unable = Fixed(Refusal("m is no mixture of experts."))
    unable.name = "flash_moe"
    with pytest.raises(ModelError, match=r"^m is no mixture of experts.$"):
        await way(unable, Fixed(Fit(8, 1, 1)), load=replace(LOAD, flash=True))
    with pytest.raises(ModelError, match="does not serve expert shards"):
        await way(Fixed(Fit(8, 1, 1)), load=replace(LOAD, shards=True))


def test_what_several_refuse_alike_is_told_once() -> None:
    said = Refusal("m is no mixture of experts.", "use another")
    assert chosen(said, said) == said


def test_without_a_look_at_the_mesh_its_nodes_are_taken_to_be_there() -> None:
    best = choose([TOO_LARGE, Fixed(STAGES), flash()], LOAD, RESOURCES)
    assert not isinstance(best, Refusal)
    assert best[1] == FLASH
    assert choose([], LOAD, RESOURCES) == Refusal(
        "no backend is installed", "see `meshnode plugins`"
    )


async def test_flash_may_take_what_is_leased_for_it() -> None:
    seen: list[Load] = []

    class Seen(Fixed):
        def open(self, load: Load, mesh: Mesh) -> Any:
            seen.append(load)
            return super().open(load, mesh)

    limited = replace(LOAD, memory_limit=99)
    for fit in (FLASH, Fit(8, 1, 60)):
        async with (
            by_backend(limited, [Seen(fit)], Memory(RESOURCES), NoMesh()) as found,
            found.open(lambda _: None),
        ):
            pass
    assert [one.memory_limit for one in seen] == [60, 99]


async def test_memory_that_is_taken_while_a_way_is_chosen_is_not_promised_twice(
    autojump_clock: MockClock,
) -> None:
    class Greedy(Fixed):
        """Wants all that is free, and fifty at least."""

        name = "flash_moe"

        def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
            free = resources.memory_free
            return replace(FLASH, memory_bytes=free) if free >= 50 else Refusal("too little.")

    memory, chosen, said = Memory(RESOURCES), list[Choice](), Said()

    async def load() -> None:
        async with by_backend(LOAD, [Greedy(FLASH), skippy(MISSING)], memory, said) as found:
            chosen.append(found.choice)
            await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        nursery.start_soon(load)
    assert chosen == ["flash", "stages"]
    assert len(said.lines) == 1  # for the second nothing was left to choose


async def test_what_is_leased_for_a_shard_is_what_it_may_take() -> None:
    limits: list[int | None] = []

    class Sharded(Fixed):
        def open(self, load: Load, mesh: Mesh) -> Any:
            limits.append(load.memory_limit)
            return super().open(load, mesh)

    backend = Sharded(Fit(8, 1, 60, choice="shards", room=40))
    wanted = replace(LOAD, shards=True, memory_limit=90)
    async with by_backend(wanted, [backend], Memory(RESOURCES), NoMesh()) as way:
        assert (way.choice, way.room) == ("shards", 40)
        async with way.open(lambda _: None):
            assert limits == [60]
