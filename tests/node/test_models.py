"""The models of a node: served, standing by, loaded and unloaded while it runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from p2p_mesh.core.names import Digest, ModelId, RequestId
from p2p_mesh.core.records import Held, InferenceRequest, ModelFile, Resources, TextPrompt
from p2p_mesh.errors import EngineDied, LocalError, ModelError, Unavailable, UnknownModel
from p2p_mesh.hookspecs import hookimpl
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import models as module
from p2p_mesh.node.models import DRAIN, REST, Models
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve.backend import Fit, Load, Offer
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.store import Digests
from p2p_mesh.settings import Settings
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import write_model


def model(name: str) -> ModelFile:
    """A file whose digest is known, so that no thread reads it."""
    return ModelFile(
        id=ModelId(name), path=f"/{name}.gguf", size_bytes=7, architecture="llama",
        context_length=64, kv_bytes_per_token=1, digest=Digest(f"{ord(name[0]):02x}" * 32),
    )  # fmt: skip


M = model("m")


def shelf(
    echo: Echo, *, standby: tuple[ModelFile, ...] = (), digests: Path = Path("/nowhere"),
    said: list[Entry] | None = None, changed: Any = lambda: None, settings: Settings | None = None,
) -> Models:  # fmt: skip
    plugins = Plugins()
    backend = SimpleNamespace(meshnode_api=1, meshnode_backends=hookimpl(lambda: [echo]))
    plugins.add("echo", lambda: backend)
    plugins.ask(Settings())
    found = Models(
        settings or Settings(), plugins,
        memory=Memory(Resources(memory_total=100, memory_free=100, threads=1)),
        mesh=NoMesh(), digests=Digests(digests),
        journal=Journal(*([said.append] if said is not None else [])), changed=changed,
    )  # fmt: skip
    found.stand_by(standby)
    return found


@asynccontextmanager
async def running(models: Models) -> AsyncIterator[Models]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(models.run)
        await trio.testing.wait_all_tasks_blocked()
        yield models
        nursery.cancel_scope.cancel()


def ask(text: str = "one two three") -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=M.id, prompt=TextPrompt(text=text))


async def test_standby_file_is_held_and_not_loaded(autojump_clock: object) -> None:
    echo = Echo()
    async with running(shelf(echo, standby=(M,))) as models:
        await trio.sleep(60)
        assert (models.hosted, echo.engines) == ({}, [])
        assert models.held() == (Held(id=M.id, digest=M.digest, size_bytes=7),)
        assert models.standby() == (M,)


@pytest.mark.parametrize("reference", ["m", "6d6d6d6d", "6d" * 32], ids=["id", "digits", "digest"])
async def test_standby_file_is_loaded_by_its_name_or_digest(
    autojump_clock: object, reference: str
) -> None:
    changes: list[None] = []
    models = shelf(
        Echo(load_seconds=5.0), standby=(M, model("x")), changed=lambda: changes.append(None)
    )
    async with running(models):
        hosted = await models.load(reference)
        assert (hosted.id, hosted.state, models.held()[0].loading) == ("m", "loading", True)
        assert changes
        await hosted.wait_settled()
        assert models.hosted == {"m": hosted}
        assert (hosted.state, hosted.digest, models.held()[0].loading) == ("ready", M.digest, False)
        assert models.standby() == (model("x"),)


async def test_what_is_served_is_not_loaded_twice(autojump_clock: object) -> None:
    models = shelf(Echo(load_seconds=1.0))
    models.add([M])
    async with running(models):
        with pytest.raises(LocalError, match=r"m is served already \(loading\)"):
            await models.load("m")
        await models.hosted["m"].wait_settled()
        with pytest.raises(LocalError, match=r"m is served already \(ready\)"):
            await models.load("m")


async def test_unknown_file_is_named_with_what_helps() -> None:
    async with running(shelf(Echo())) as models:
        with pytest.raises(ModelError, match="there is no model 'nowhere': give the path"):
            await models.load("nowhere")


async def test_digits_of_several_files_are_refused(autojump_clock: object) -> None:
    twin = msgspec.structs.replace(model("x"), digest=Digest("6d" * 31 + "00"))
    async with running(shelf(Echo(), standby=(M, twin))) as models:
        with pytest.raises(LocalError, match="begins the digests of m, x: give more digits"):
            await models.load("6d6d6d6d")


async def test_model_that_does_not_fit_says_what_would_help(autojump_clock: object) -> None:
    models = shelf(Echo(memory=101), standby=(M,))
    async with running(models):
        with pytest.raises(ModelError, match=r"^m cannot be served: there is too little memory fr"):
            await models.load("m")
        assert (models.hosted, models.standby()) == ({}, (M,))


async def test_memory_is_free_again_after_an_unload(autojump_clock: object) -> None:
    models = shelf(Echo(memory=60), standby=(M, model("x")))
    async with running(models):
        await models.load("m")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ModelError, match="too little memory"):
            await models.load("x")
        await models.unload("m")
        await models.load("x")
        assert list(models.hosted) == ["x"]


async def test_nothing_is_loaded_before_the_node_runs() -> None:
    models = shelf(Echo(), standby=(M,))
    with pytest.raises(LocalError, match="still starting"):
        await models.load("m")
    with pytest.raises(LocalError, match="not served"):
        await models.unload("m")


async def test_unload_lets_the_answers_end(autojump_clock: object) -> None:
    echo = Echo(pause=1.0)
    models = shelf(echo)
    models.add([M])
    async with running(models), trio.open_nursery() as nursery:
        hosted = models.hosted["m"]
        await hosted.wait_settled()
        words: list[str] = []

        async def listen() -> None:
            async with hosted.generate(ask()) as deltas:
                words.extend([delta.text async for delta in deltas])

        nursery.start_soon(listen)
        await trio.sleep(0.5)
        began = trio.current_time()
        nursery.start_soon(models.unload, "m")
        await trio.testing.wait_all_tasks_blocked()
        assert (models.hosted, models.leaving()) == ({}, (hosted,))
        with pytest.raises(LocalError, match="m is being unloaded; try again"):
            await models.load("m")
        with pytest.raises(LocalError, match="m is not served by this node; it serves no file"):
            await models.unload("m")
        with pytest.raises(UnknownModel):
            async with hosted.generate(ask()):
                pass
    assert words == ["one", " two", " three", ""]
    assert trio.current_time() - began == pytest.approx(2.5)
    assert echo.engines[0]._reason == "closed"
    assert models.standby() == (M,)


async def test_answer_that_does_not_end_is_not_waited_for(autojump_clock: object) -> None:
    models = shelf(Echo(pause=1000.0))
    models.add([M])
    async with running(models), trio.open_nursery() as nursery:
        hosted = models.hosted["m"]
        await hosted.wait_settled()

        async def listen() -> None:
            with pytest.raises(EngineDied):
                async with hosted.generate(ask()) as deltas:
                    await anext(deltas)

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await models.unload("m")
        assert trio.current_time() - began == pytest.approx(DRAIN)


async def test_unload_goes_on_when_who_asked_has_left(autojump_clock: object) -> None:
    echo = Echo(pause=5.0)
    models = shelf(echo)
    models.add([M])
    async with running(models), trio.open_nursery() as nursery:
        hosted = models.hosted["m"]
        await hosted.wait_settled()

        async def listen() -> None:
            async with hosted.generate(ask("one")) as deltas:
                assert [delta.text async for delta in deltas] == ["one", ""]

        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1.0):
            await models.unload("m")
        await trio.sleep(10)
        assert echo.engines[0]._reason == "closed"
        assert (await models.load("m")).state == "loading"


async def test_model_of_an_endpoint_is_not_unloaded_here(autojump_clock: object) -> None:
    models = shelf(Echo(), standby=(model("far"), M))
    far = models.hosted["far"] = models.host(
        Offer(ModelId("far"), lambda: Echo().open(Load(M), NoMesh()))
    )
    models.hosted["else"] = far
    async with running(models):
        for name in ("far", "else"):
            with pytest.raises(LocalError, match=f"{name} is the model of an endpoint"):
                await models.unload(name)
        with pytest.raises(LocalError, match="far is served by an endpoint of this node already"):
            await models.load("far")


async def test_no_more_models_are_served_than_are_announced(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MODELS", 1)
    models = shelf(Echo(), standby=(model("x"),))
    models.add([M])
    async with running(models):
        with pytest.raises(LocalError, match="serves 1 models, and no more"):
            await models.load("x")


async def test_model_that_failed_can_be_loaded_again(autojump_clock: object) -> None:
    echo = Echo()
    echo.failures.append(ModelError("it is damaged"))
    models = shelf(echo)
    models.add([M])
    async with running(models):
        await models.hosted["m"].wait_settled()
        await trio.testing.wait_all_tasks_blocked()
        assert models.hosted["m"].state == "failed"
        assert models.wishes() == ("m",)
        again = await models.load("m")
        await again.wait_settled()
        assert (again.state, models.wishes()) == ("ready", ())


async def test_failed_model_can_be_taken_away(autojump_clock: object) -> None:
    models = shelf(Echo(memory=101))
    models.add([M])
    async with running(models):
        await models.hosted["m"].wait_settled()
        await trio.testing.wait_all_tasks_blocked()
        await models.unload("m")
        assert (models.hosted, models.wishes(), models.standby()) == ({}, (), (M,))


async def test_model_without_a_file_is_a_wish_until_it_is_served(autojump_clock: object) -> None:
    said: list[Entry] = []
    models = shelf(Echo(), standby=(M,), said=said)
    models.wish([ModelId("far"), M.id])
    assert [entry.event for entry in said] == ["model_wished"] * 2
    assert said[0].message == "this machine has no file far; asking the mesh for it"
    async with running(models):
        assert models.wishes() == ("far", "m")
        await models.load("m")
        assert models.wishes() == ("far",)


async def test_plan_sees_what_each_file_is_at(autojump_clock: object) -> None:
    models = shelf(Echo(load_seconds=3.0), standby=(model("x"), model("y")))
    models.add([M])
    async with running(models):
        await trio.sleep(10)
        planned = await models.load("x", is_planned=True)
        seen = {one.model: (one.state, one.is_planned, one.since) for one in models.own()}
        assert seen == {
            "m": ("ready", False, 0.0), "x": ("loading", True, 10.0), "y": ("standby", False, 0.0)
        }  # fmt: skip
        await planned.wait_settled()
        assert [one.slots for one in models.own() if one.model == "x"] == [2]
        assert (models.is_planned(ModelId("x")), models.is_planned(M.id)) == (True, False)


async def test_what_its_owner_unloaded_rests_until_its_owner_loads_it(
    autojump_clock: object,
) -> None:
    async with running(shelf(Echo(), standby=(M,))) as models:
        await models.load("m")
        await models.unload("m")
        await trio.sleep(80_000)
        assert models.own()[0].is_resting
        await models.load("m")
        await models.unload("m", is_planned=True)
        assert not models.own()[0].is_resting


async def test_what_will_not_be_loaded_now_is_announced_so(autojump_clock: object) -> None:
    changes: list[None] = []
    models = shelf(
        Echo(load_seconds=3.0), standby=(M, model("x")), changed=lambda: changes.append(None)
    )

    def resting() -> list[str]:
        return [one.id for one in models.held() if one.resting]

    async with running(models):
        assert resting() == []
        await models.load("m")
        assert resting() == []
        await models.unload("m")
        assert resting() == ["m"]
        planned = await models.load("x", is_planned=True)
        assert resting() == ["m"]
        await planned.wait_settled()
        await models.unload("x", is_planned=True)
        assert resting() == ["m"]
        changes.clear()
        models.rest(ModelId("x"))
        assert (resting(), len(changes)) == (["m", "x"], 1)
        await trio.sleep(REST + 1)
        assert (resting(), len(changes)) == (["m"], 2)
        models.rest(M.id)
        await trio.sleep(REST + 1)
        assert resting() == ["m"]


async def test_node_that_loads_one_model_by_the_plan_will_load_no_other(
    autojump_clock: object,
) -> None:
    models = shelf(Echo(load_seconds=3.0), standby=(M, model("x")))
    async with running(models):
        planned = await models.load("m", is_planned=True)
        assert [one.resting for one in models.held()] == [False, True]
        await planned.wait_settled()
        assert [one.resting for one in models.held()] == [False, False]


async def test_owner_may_keep_what_the_plan_loaded(autojump_clock: object) -> None:
    async with running(shelf(Echo(), standby=(M,))) as models:
        planned = await models.load("m", is_planned=True)
        await planned.wait_settled()
        assert await models.load("m") is planned
        assert not models.is_planned(M.id)
        with pytest.raises(LocalError, match="served already"):
            await models.load("m")


async def test_plan_does_not_load_twice(autojump_clock: object) -> None:
    async with running(shelf(Echo(), standby=(M,))) as models:
        await models.load("m", is_planned=True)
        with pytest.raises(LocalError, match="served already"):
            await models.load("m", is_planned=True)
        assert models.is_planned(M.id)


async def test_planned_model_that_fails_stands_by_and_rests(autojump_clock: object) -> None:
    echo = Echo()
    echo.failures.append(EngineDied("out of memory"))
    async with running(shelf(echo, standby=(M,))) as models:
        await models.load("m", is_planned=True)
        await trio.testing.wait_all_tasks_blocked()
        assert (models.hosted, models.standby()) == ({}, (M,))
        assert models.own()[0].is_resting
        await trio.sleep(REST + 1)
        assert not models.own()[0].is_resting


async def test_file_of_a_path_is_loaded_and_stands_by_afterwards(tmp_path: Path) -> None:
    path, learned = write_model(tmp_path / "tiny.gguf").path, trio.Event()

    def changed() -> None:
        if any(one.digest for one in models.held()):
            learned.set()

    models = shelf(Echo(), digests=tmp_path / "digests.json", changed=changed)
    async with running(models):
        hosted = await models.load(str(path))
        await hosted.wait_settled()
        with trio.fail_after(5):
            await learned.wait()
        assert hosted.digest is not None
        await models.unload(hosted.digest[:8])
        assert [(one.id, one.digest) for one in models.held()] == [("tiny", hosted.digest)]


async def test_digests_of_standby_files_are_learned_beside(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf").path
    file = msgspec.structs.replace(M, path=str(path), digest=None)
    gone = msgspec.structs.replace(model("gone"), digest=None)
    changed, said = trio.Event(), list[Entry]()
    models = shelf(
        Echo(), standby=(gone, file), digests=tmp_path / "digests.json", changed=changed.set,
        said=said,
    )  # fmt: skip
    async with running(models):
        with trio.fail_after(5):
            await changed.wait()
        assert [one.digest is not None for one in models.held()] == [False, True]
    assert [entry.event for entry in said] == ["digest_failed"]


async def test_memory_that_is_leased_is_not_announced_as_free() -> None:
    models = shelf(Echo())
    memory = models._memory
    memory.learn(7e9)
    async with memory.lease(60):
        found = models.measured()
        assert (found.memory_free, found.bandwidth) == (40, 7e9)
    assert models.measured().memory_free == 100


async def test_file_is_found_without_being_loaded(autojump_clock: object) -> None:
    async with running(shelf(Echo(), standby=(M,))) as models:
        assert (await models.find("m")).model == M
        with pytest.raises(ModelError):
            await models.find("nowhere")
        assert models.hosted == {}


@pytest.mark.parametrize("is_planned", [True, False])
async def test_model_that_waits_for_other_nodes_is_left_to_others_where_nobody_named_it(
    autojump_clock: object, is_planned: bool
) -> None:
    class Split(Echo):
        def assess(self, load: Load, resources: Resources) -> Fit:
            return Fit(context=64, slots=1, memory_bytes=0, choice="stages")

    split = Split()
    split.failures = [Unavailable("nobody is near") for _ in range(99)]
    async with running(shelf(split, standby=(M,))) as models:
        await models.load("m", is_planned=is_planned)
        await trio.sleep(30)
        assert ("m" in models.hosted) is not is_planned
        assert models.held()[0].waiting is not is_planned


async def test_node_that_takes_part_in_shards_announces_its_room(autojump_clock: object) -> None:
    class Sharded(Echo):
        def assess(self, load: Load, resources: Resources) -> Fit:
            return Fit(context=64, slots=1, memory_bytes=50, choice="shards", room=40)

    sharded, settings = Sharded(), Settings(shards=True)
    sharded.failures = [Unavailable("nobody else takes part")]
    async with running(shelf(sharded, standby=(M,), settings=settings)) as models:
        assert models.held()[0].shards == 0
        await models.load("m")
        await trio.testing.wait_all_tasks_blocked()
        assert (models.held()[0].shards, models.held()[0].waiting) == (40, True)
        await trio.sleep(30)
        assert (models.held()[0].shards, models.hosted[M.id].state) == (40, "ready")
        await models.unload("m")
        assert models.held()[0].shards == 0
