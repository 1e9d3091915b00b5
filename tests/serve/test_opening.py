"""How an engine is opened: within the memory that is free, by the backend that is best."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Fit, Load, Offer, Refusal
from p2p_mesh.serve.opening import Memory, by_backend, by_source, choose
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
    memory.learn(5e9)
    assert (memory.free().bandwidth, memory.free().memory_free) == (5e9, 100)


def test_all_refusals_are_told() -> None:
    assert chosen(Refusal("too big", "buy memory"), Refusal("no GPU")) == Refusal(
        "too big; no GPU", "buy memory"
    )


@pytest.mark.parametrize("found", [None, 42, Fit(8, 1, 101)])
def test_backend_that_says_what_cannot_be_refuses_its_model(found: Any) -> None:
    refusal = chosen(found)
    assert isinstance(refusal, Refusal)
    assert "the backend echo" in refusal.reason


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
