"""Models are kept served: chosen, loaded, brought back, given up, queued for."""

import dataclasses
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2p_mesh.core.names import Digest, ModelId, RequestId
from p2p_mesh.core.records import (
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    ModelFile,
    ModelLoad,
    Query,
    Reply,
    RerankQuery,
    Resources,
    Resume,
    ServedModel,
    Shard,
    Text,
    TextPrompt,
    Vectors,
)
from p2p_mesh.errors import (
    EngineDied,
    Loading,
    ModelError,
    Overloaded,
    RequestError,
    Unavailable,
    UnknownModel,
)
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.serve import supervisor
from p2p_mesh.serve.backend import Backend, Capability, Description, Fit, Load, Mesh, Offer, Refusal
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.slots import QUEUE
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.testing.backend import Echo, EchoEngine
from p2p_mesh.testing.mesh import NoMesh

RESOURCES = Resources(memory_total=100, memory_free=100, threads=2)
LOAD = Load(
    ModelFile(
        id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
        kv_bytes_per_token=1,
    )
)  # fmt: skip


class Case:
    """A hosted model, and all that it said."""

    def __init__(
        self,
        *backends: Backend,
        resources: Resources = RESOURCES,
        wanted: Load | Offer = LOAD,
        is_patient: bool = True,
    ) -> None:
        self.said: list[Entry] = []
        self.changes = 0
        self.memory = Memory(resources)
        self.hosted = Hosted(
            wanted, backends, memory=self.memory, mesh=NoMesh(), journal=Journal(self.said.append),
            rng=Random(1), changed=self._change, is_patient=is_patient,
        )  # fmt: skip

    def _change(self) -> None:
        self.changes += 1

    @property
    def events(self) -> list[str]:
        return [entry.event for entry in self.said]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Hosted]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hosted.run)
            await self.hosted.wait_settled()
            yield self.hosted
            nursery.cancel_scope.cancel()


def ask(text: str = "one two three") -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text=text))


async def answer(hosted: Hosted, text: str = "one two three") -> str:
    async with hosted.generate(ask(text)) as deltas:
        return "".join([delta.text async for delta in deltas])


async def test_model_becomes_ready_and_answers() -> None:
    case = Case(Echo())
    async with case.running() as hosted:
        assert hosted.state == "ready"
        served = hosted.served()
        assert served is not None
        assert (served.id, served.slots, served.numerics) == ("m", 2, "echo")
        assert await answer(hosted) == "one two three"
    assert case.events == ["model_ready"]
    assert case.changes >= 1


def sharded(load: Load, digest: Digest | None) -> ServedModel:
    """What is announced of a model, of which a shard is served."""
    case = Case(Echo(), wanted=load)
    shard = Shard(model=WHOLE, mass=0.9)
    about = Description(frozenset({"generate"}), context=8, slots=1, shard=shard, digest=digest)
    case.hosted._about = about
    served = case.hosted.served()
    assert served is not None
    return served


WHOLE, PART = Digest("1" * 64), Digest("2" * 64)


@pytest.mark.parametrize("digest", [PART, None])
def test_shard_is_announced_with_its_own_digest_never_that_of_the_whole(
    digest: Digest | None,
) -> None:
    model = msgspec.structs.replace(LOAD.model, digest=WHOLE)
    served = sharded(dataclasses.replace(LOAD, model=model), digest)
    assert (served.digest, served.shard) == (digest, Shard(model=WHOLE, mass=0.9))


def test_file_that_is_a_shard_is_announced_as_one() -> None:
    shard = Shard(model=WHOLE, mass=0.8)
    model = msgspec.structs.replace(LOAD.model, digest=PART, shard=shard)
    case = Case(Echo(), wanted=dataclasses.replace(LOAD, model=model))
    case.hosted._about = Description(frozenset({"generate"}), context=8, slots=1)
    served = case.hosted.served()
    assert served is not None
    assert (served.digest, served.shard) == (PART, shard)
    assert sharded(dataclasses.replace(LOAD, model=model), None).digest == PART


async def test_memory_is_leased_while_the_model_is_served() -> None:
    case = Case(Echo(memory=60))
    async with case.running():
        assert case.memory.free().memory_free == 40
    assert case.memory.free().memory_free == 100


async def test_model_that_does_not_fit_says_why() -> None:
    case = Case(Echo(memory=101))
    async with case.running() as hosted:
        assert (hosted.state, hosted.served()) == ("failed", None)
        with pytest.raises(Unavailable, match="too little memory free some"):
            await answer(hosted)
    assert case.events == ["model_failed"]


async def test_no_backend_is_said() -> None:
    case = Case()
    async with case.running() as hosted:
        assert "no backend is installed" in hosted.error


@pytest.mark.parametrize(
    "error", [ModelError("it is broken"), EngineDied("abort"), KeyError("bug")]
)
async def test_model_that_does_not_load_is_given_up(error: Exception) -> None:
    echo = Echo()
    echo.failures = [error]
    case = Case(echo)
    async with case.running() as hosted:
        assert hosted.state == "failed"
    assert case.events == ["model_failed"]
    assert echo.engines == []


async def test_loading_model_asks_for_patience(autojump_clock: MockClock) -> None:
    case = Case(Echo(load_seconds=9))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(case.hosted.run)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Loading) as caught:
            await answer(case.hosted)
        assert caught.value.retry_after == 1.0
        nursery.cancel_scope.cancel()


async def test_dead_engine_comes_back(autojump_clock: MockClock) -> None:
    echo = Echo()
    case = Case(echo)
    async with case.running() as hosted:
        echo.engines[0].die()
        await trio.testing.wait_all_tasks_blocked()
        assert hosted.state == "loading"
        assert hosted.served() is not None  # others are told to wait, not that it is unknown
        await trio.sleep(1.0)
        assert await answer(hosted) == "one two three"
    assert case.events == ["model_ready", "engine_died", "model_ready"]


async def test_answer_that_loses_its_engine_is_told(autojump_clock: MockClock) -> None:
    echo = Echo(pause=1.0)
    async with Case(echo).running() as hosted, hosted.generate(ask()) as deltas:
        assert (await anext(deltas)).text == "one"
        echo.engines[0].die()
        with pytest.raises(EngineDied):
            await anext(deltas)


async def test_engine_that_dies_again_and_again_is_given_up(autojump_clock: MockClock) -> None:
    echo = Echo()
    case = Case(echo)
    async with case.running() as hosted:
        while hosted.state != "failed":
            if hosted.state == "ready":
                echo.engines[-1].die()
            await trio.sleep(0.05)
        assert len(echo.engines) == supervisor.MAX_RELOADS + 1
    assert case.events[-1] == "model_failed"


async def test_file_that_is_another_one_now_is_not_served_under_the_digest_of_the_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"the model")
    echo = Echo()
    model = msgspec.structs.replace(LOAD.model, path=str(path))
    case = Case(echo, wanted=dataclasses.replace(LOAD, model=model))
    async with case.running() as hosted:
        echo.engines[-1].die()
        await trio.sleep(1)
        assert len(echo.engines) == 2
        path.write_bytes(b"another")
        echo.engines[-1].die()
        await trio.sleep(1)
        assert hosted.state == "failed"
    assert "its file is another one now: unload m, and load it" in hosted.error
    assert len(echo.engines) == 2


async def test_slots_bound_what_runs_and_the_queue_what_waits(autojump_clock: MockClock) -> None:
    echo = Echo(pause=1.0)
    async with Case(echo).running() as hosted, trio.open_nursery() as nursery:
        for _ in range(2 + QUEUE):
            nursery.start_soon(answer, hosted)
        await trio.testing.wait_all_tasks_blocked()
        assert (hosted.active, hosted.queued) == (2, QUEUE)
        assert echo.engines[0].active == 2
        with pytest.raises(Overloaded) as caught:
            await answer(hosted)
        assert caught.value.retry_after == pytest.approx(QUEUE / 2)
    assert (hosted.active, hosted.queued) == (0, 0)


async def test_cancelled_answer_frees_its_slot(autojump_clock: MockClock) -> None:
    echo = Echo(pause=math.inf)
    async with Case(echo).running() as hosted:
        with trio.move_on_after(1):
            await answer(hosted)
        assert (hosted.active, echo.engines[0].active) == (0, 0)


async def test_backend_that_raises_refuses_its_model() -> None:
    class Broken(Echo):
        def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
            raise ZeroDivisionError("a defect")

    async with Case(Broken()).running() as hosted:
        assert "the backend echo failed: ZeroDivisionError: a defect" in hosted.error
    async with Case(Broken(), Echo()).running() as hosted:
        assert hosted.state == "ready"


async def test_load_without_progress_is_given_up(autojump_clock: MockClock) -> None:
    async with Case(Echo(load_seconds=math.inf)).running() as hosted:
        assert "made no progress for 600 s" in hosted.error


async def test_slow_load_that_always_dies_is_given_up(autojump_clock: MockClock) -> None:
    echo = Echo(load_seconds=supervisor.SETTLED + 1)
    async with Case(echo).running() as hosted:
        while hosted.state != "failed":
            if hosted.state == "ready":
                echo.engines[-1].die()
            await trio.sleep(0.5)
        assert len(echo.engines) == supervisor.MAX_RELOADS + 1


async def test_engine_that_cannot_describe_itself_is_given_up() -> None:
    class Mute(EchoEngine):
        def describe(self) -> Description:
            raise ZeroDivisionError("a defect")

    class Muting(Echo):
        @asynccontextmanager
        async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[EchoEngine]:
            yield Mute(load, 0.0)

    async with Case(Muting()).running() as hosted:
        assert (hosted.state, hosted.served()) == ("failed", None)


def offered(echo: Echo) -> Offer:
    """What a source offers, whose server is an Echo."""
    return Offer(ModelId("m"), lambda: echo.open(LOAD, NoMesh()))


async def test_offer_is_served_without_a_backend() -> None:
    case = Case(wanted=offered(Echo()), resources=Resources(
        memory_total=0, memory_free=0, threads=1))  # fmt: skip
    async with case.running() as hosted:
        assert (hosted.id, hosted.load, hosted.digest) == ("m", None, None)
        assert await answer(hosted) == "one two three"


async def test_offer_that_does_not_open_is_tried_again(autojump_clock: MockClock) -> None:
    echo = Echo()
    echo.failures = [EngineDied("refused")] * 3
    case = Case(wanted=offered(echo))
    async with case.running() as hosted:
        assert (hosted.state, hosted.error, hosted.served()) == ("loading", "refused", None)
        with pytest.raises(Loading, match="started again: refused") as caught:
            await answer(hosted)
        assert caught.value.retry_after == 1.0
        await trio.sleep(5)
        assert await answer(hosted) == "one two three"
    assert case.events == ["engine_died", "model_ready"]  # the same reason is said once


async def test_offer_is_never_given_up_but_others_are_not_told_to_wait_for_ever(
    autojump_clock: MockClock,
) -> None:
    echo = Echo()
    case = Case(wanted=offered(echo))
    async with case.running() as hosted:
        echo.failures = [EngineDied("refused")] * 100
        echo.engines[0].die()
        await trio.sleep(5)
        assert hosted.served() is not None
        await trio.sleep(60)
        assert (hosted.state, hosted.served()) == ("loading", None)
        with pytest.raises(Loading) as caught:
            await answer(hosted)
        assert 1 <= (caught.value.retry_after or 0) <= supervisor.LONGEST_PAUSE[True]
        echo.failures = []
        await trio.sleep(5)
        assert hosted.state == "ready"


class Knowing(EchoEngine):
    """Embeds, and writes nothing."""

    can: frozenset[Capability] = frozenset({"embed"})

    def describe(self) -> Description:
        return Description(capabilities=self.can, context=8, slots=1)

    async def query(self, query: Query) -> Reply:
        await trio.sleep(1)
        if isinstance(query, EmbedQuery):
            return Vectors(vectors=(b"",), prompt_tokens=1)
        return Text(text="x")


@asynccontextmanager
async def knowing() -> AsyncIterator[EchoEngine]:
    yield Knowing(LOAD, 0.0)


EMBED = EmbedQuery(model=ModelId("m"), inputs=("x",))


async def test_queries_take_slots(autojump_clock: MockClock) -> None:
    async with Case(wanted=Offer(ModelId("m"), knowing)).running() as hosted:
        assert await hosted.query(EMBED) == Vectors(vectors=(b"",), prompt_tokens=1)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(hosted.query, EMBED)
            await trio.testing.wait_all_tasks_blocked()
            assert (hosted.active, hosted.queued) == (1, 1)
    assert hosted.active == 0


async def test_model_does_what_it_can_and_says_what_that_is(autojump_clock: MockClock) -> None:
    rerank = RerankQuery(model=ModelId("m"), query="q", documents=("d",))
    async with Case(wanted=Offer(ModelId("m"), knowing)).running() as hosted:
        with pytest.raises(RequestError, match="m writes no text; it can: embed"):
            await answer(hosted)
        with pytest.raises(RequestError, match="m ranks no documents; it can: embed"):
            await hosted.query(rerank)
        words = DetokenizeQuery(model=ModelId("m"), tokens=(1,))
        assert await hosted.query(words) == Text(text="x")


async def test_query_waits_for_no_model_that_loads() -> None:
    hosted = Case(wanted=Offer(ModelId("m"), knowing)).hosted
    with pytest.raises(Loading):
        await hosted.query(EMBED)


async def test_drain_waits_for_what_runs(autojump_clock: MockClock) -> None:
    async with Case(Echo(pause=1.0)).running() as hosted, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(answer, hosted)
        await trio.testing.wait_all_tasks_blocked()
        await hosted.drain()
        assert trio.current_time() == pytest.approx(6)
    await Case().hosted.drain()


async def test_drained_model_takes_nothing_new(autojump_clock: MockClock) -> None:
    case = Case(Echo(pause=1.0))
    async with case.running() as hosted, trio.open_nursery() as nursery:
        nursery.start_soon(answer, hosted)
        await trio.testing.wait_all_tasks_blocked()
        changes = case.changes
        nursery.start_soon(hosted.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert (hosted.is_closing, hosted.served(), hosted.active) == (True, None, 1)
        assert case.changes > changes
        with pytest.raises(UnknownModel, match="m is being unloaded"):
            await answer(hosted)
        with pytest.raises(UnknownModel):
            await hosted.query(EMBED)


async def test_drain_ends_though_the_engine_dies(autojump_clock: MockClock) -> None:
    echo = Echo(pause=1.0)
    async with Case(echo).running() as hosted, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(_fail, hosted)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hosted.drain)
        await trio.sleep(0.5)
        echo.engines[0].die()
    assert (hosted.active, hosted.queued) == (0, 0)


async def _fail(hosted: Hosted) -> None:
    with pytest.raises(EngineDied):
        await answer(hosted)


async def test_whoever_waits_is_told_at_once_that_the_engine_died(
    autojump_clock: MockClock,
) -> None:
    echo = Echo(pause=100.0)
    async with Case(echo).running() as hosted:
        with trio.move_on_after(10) as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(answer, hosted)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(_fail, hosted)
                await trio.testing.wait_all_tasks_blocked()
                echo.engines[0].die()
                await trio.sleep(0.1)
                assert hosted.queued == 0
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught


async def test_frozen_engine_is_ended_and_started_again(autojump_clock: MockClock) -> None:
    echo = Echo(pause=1.0)
    case = Case(echo)
    async with case.running() as hosted:
        echo.engines[0].freeze()
        with trio.fail_after(60):
            await _fail(hosted)
        await trio.sleep(1.0)
        assert await answer(hosted) == "one two three"
    assert case.events == ["model_ready", "engine_died", "model_ready"]
    assert "no sign of life" in case.said[1].message


async def test_askers_take_turns(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def visit(hosted: Hosted, asker: str, request: InferenceRequest) -> None:
        async with hosted.generate(request, asker) as deltas:
            order.append("A" if request.resume else asker)
            assert [delta async for delta in deltas]

    going_on = msgspec.structs.replace(ask(), resume=(Resume(tokens=(3,), text=3),))
    one_at_a_time = dataclasses.replace(LOAD, slots=1)
    case = Case(Echo(pause=1.0), wanted=one_at_a_time)
    async with case.running() as hosted, trio.open_nursery() as nursery:
        for asker in "aaab":
            nursery.start_soon(visit, hosted, asker, ask())
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(visit, hosted, "a", going_on)
    assert "".join(order) == "aAbaa"


async def test_load_is_measured(autojump_clock: MockClock) -> None:
    case = Case(Echo(pause=0.5))
    async with case.running() as hosted:
        assert hosted.load_now() == ModelLoad(model=ModelId("m"), slots=2)
        changes = case.changes
        await answer(hosted, "word " * 41)
        load = hosted.load_now()
        assert (load.active, load.queued) == (0, 0)
        assert load.prefill == pytest.approx(82)
        assert load.first == pytest.approx(0.5)
        assert load.whole == pytest.approx(20.5)
        assert case.changes == changes + 1
        served = hosted.served()
        assert served is not None
        assert served.speed == pytest.approx(2)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(answer, hosted)
            await trio.testing.wait_all_tasks_blocked()
            load = hosted.load_now()
            assert (load.active, load.queued) == (2, 1)
        assert case.changes == changes + 1
    assert Case().hosted.load_now() == ModelLoad(model=ModelId("m"), slots=0)


async def test_measurements_outlive_the_engine(autojump_clock: MockClock) -> None:
    echo = Echo(pause=0.5)
    async with Case(echo).running() as hosted:
        await answer(hosted, "word " * 41)
        echo.engines[0].die()
        await trio.sleep(1.0)
        assert hosted.state == "ready"
        assert hosted.load_now().whole == pytest.approx(20.5)


# A model that other nodes are wanted for


class Split(Echo):
    """A backend that needs other nodes: those of `failures` are not there yet."""

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        return Fit(context=64, slots=2, memory_bytes=0, choice="stages")


def missing(count: int) -> list[Exception]:
    return [Unavailable(f"{4 + one} GB are missing") for one in range(count)]


def waits(case: Case) -> list[str]:
    return [entry.message for entry in case.said if entry.event == "model_waits"]


async def test_model_waits_for_the_nodes_that_it_needs(autojump_clock: MockClock) -> None:
    split = Split()
    split.failures = missing(30)
    case = Case(split)
    async with case.running() as hosted:
        assert (hosted.state, hosted.served()) == ("loading", None)
        assert hosted.error == "4 GB are missing"
        assert (hosted.is_waiting, hosted.notes) == (True, ())
        with pytest.raises(Loading, match="m waits for other nodes: 4 GB are missing") as caught:
            await answer(hosted)
        assert caught.value.retry_after is not None
        await trio.sleep(40 * supervisor.LONGEST_PAUSE[True])
        assert await answer(hosted) == "one two three"
        assert len(waits(case)) == 1
        assert not hosted.is_waiting
        split.engines[0].die()  # that it waited so often is not held against it
        await trio.sleep(1.0)
        assert await answer(hosted) == "one two three"
    assert case.events == ["model_waits", "model_ready", "engine_died", "model_ready"]


async def test_model_whose_nodes_leave_is_withdrawn_until_others_come(
    autojump_clock: MockClock,
) -> None:
    split = Split()
    case = Case(split)
    async with case.running() as hosted:
        assert hosted.served() is not None
        split.failures = missing(10)
        split.engines[0].die()
        await trio.sleep(2.0)
        assert (hosted.state, hosted.served()) == ("loading", None)
        with pytest.raises(Loading, match="waits for other nodes"):
            await answer(hosted)
        await trio.sleep(20 * supervisor.LONGEST_PAUSE[True])
        assert hosted.served() is not None
    assert case.events == ["model_ready", "engine_died", "model_waits", "model_ready"]


@pytest.mark.parametrize("error", [ModelError("broken"), EngineDied("abort"), KeyError("bug")])
async def test_model_that_waited_and_then_fails_is_given_up(
    autojump_clock: MockClock, error: Exception
) -> None:
    split = Split()
    split.failures = [*missing(2), error]
    case = Case(split)
    async with case.running() as hosted:
        await trio.sleep(60)
        assert hosted.state == "failed"
    assert case.events == ["model_failed"]  # that it waits is said once it has lasted


async def test_another_reason_to_wait_is_said_again(autojump_clock: MockClock) -> None:
    split = Split()
    split.failures = [*missing(20), *(Unavailable("bob does not answer") for _ in range(5))]
    case = Case(split)
    async with case.running():
        await trio.sleep(400)
    told = waits(case)
    assert len(told) == 2
    assert told[1] == "m waits for other nodes: bob does not answer"


@pytest.mark.parametrize("backend", [Split, Echo])
async def test_who_is_not_patient_or_needs_nobody_does_not_wait(backend: type[Echo]) -> None:
    echo = backend()
    echo.failures = missing(1)
    async with Case(echo, is_patient=backend is Echo).running() as hosted:
        assert hosted.state == "failed"


async def test_notes_are_what_the_engine_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    async with Case(echo).running() as hosted:
        await hosted.wait_settled()
        engine = echo.engines[0]
        about = dataclasses.replace(engine.describe(), notes=("layers 0-3 here",))
        monkeypatch.setattr(engine, "describe", lambda: about)
        assert hosted.notes == ("layers 0-3 here",)
        monkeypatch.setattr(engine, "describe", None)  # a plugin's defect
        assert list(hosted.notes) == []


async def test_measures_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    case = Case(echo)
    assert case.hosted.measures == {}
    async with case.running() as hosted:
        engine = echo.engines[0]
        measures = {"expert_hit_rate": 0.5, "not a name": 1.0}
        about = dataclasses.replace(engine.describe(), measures=measures)
        monkeypatch.setattr(engine, "describe", lambda: about)
        assert hosted.measures == {"expert_hit_rate": 0.5}


class Renewed(EchoEngine):
    """One that ends so as to be opened anew."""

    is_outdated = True


class Sharded(Echo):
    """Has room for some experts, and other parts of a model from time to time."""

    def assess(self, load: Load, resources: Resources) -> Fit | Refusal:
        return Fit(512, 2, 30, choice="shards", room=20)

    @asynccontextmanager
    async def open(self, load: Load, mesh: Mesh) -> AsyncIterator[EchoEngine]:
        engine = Renewed(load, 0.0)
        self.engines.append(engine)
        yield engine


async def test_engine_that_is_opened_anew_is_no_death(autojump_clock: MockClock) -> None:
    backend = Sharded()
    case = Case(backend, wanted=dataclasses.replace(LOAD, shards=True))
    async with case.running():
        began = trio.current_time()
        for number in range(3 * supervisor.MAX_RELOADS):
            backend.engines[number].die("3 nodes take part now")
            await trio.testing.wait_all_tasks_blocked()
            assert case.hosted.state == "ready"
        assert trio.current_time() == began
        assert await answer(case.hosted) == "one two three"
    told = [one for one in case.said if one.event == "engine_renewed"]
    assert len(told) == 3 * supervisor.MAX_RELOADS
    assert told[0].message == "the engine of m is opened anew: 3 nodes take part now"
    assert "engine_died" not in [one.event for one in case.said]


async def test_room_for_experts_is_told_while_a_shard_is_served(autojump_clock: MockClock) -> None:
    case = Case(Sharded(), wanted=dataclasses.replace(LOAD, shards=True))
    assert case.hosted.room == 0
    async with case.running():
        assert case.hosted.room == 20
    whole = Case(Echo())
    async with whole.running():
        assert whole.hosted.room == 0
