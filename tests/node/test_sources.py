"""What sources offer is served, under names that differ, until it is no longer offered."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, ModelFile, Resources, TextPrompt
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node import sources as module
from p2p_mesh.node.sources import Sourced
from p2p_mesh.serve.backend import Engine, Load, Offer
from p2p_mesh.serve.opening import Memory
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.testing.backend import Echo
from p2p_mesh.testing.mesh import NoMesh

MODEL = ModelFile(
    id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
    kv_bytes_per_token=1,
)  # fmt: skip


class Scripted:
    """A source that offers what a test says."""

    name = "foreign:8080"

    def __init__(self, echo: Echo, error: Exception | None = None) -> None:
        self.note: Callable[[str], None]
        self._echo = echo
        self._error = error
        self._tell: Callable[[Sequence[Offer]], None]

    async def watch(
        self, offer: Callable[[Sequence[Offer]], None], note: Callable[[str], None]
    ) -> None:
        self._tell, self.note = offer, note
        if self._error is not None:
            raise self._error
        await trio.sleep_forever()

    async def offer(self, *names: str) -> None:
        self._tell([Offer(ModelId(one), self._open) for one in names])
        await wait_all_tasks_blocked()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Engine]:
        async with self._echo.open(Load(MODEL), NoMesh()) as engine:
            yield engine


class Case:
    """A node's table of models, and a source that fills it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.said: list[Entry] = []
        self.changes = 0
        self.hosted: dict[str, Hosted] = {}
        self.echo = Echo(pause=1.0)
        self.source = Scripted(self.echo, error)
        self.sourced = Sourced(
            self.source, self.hosted, host=self._host, journal=Journal(self.said.append),
            changed=self._change,
        )  # fmt: skip

    def _host(self, offer: Offer) -> Hosted:
        return Hosted(
            offer, memory=Memory(Resources(memory_total=0, memory_free=0, threads=1)),
            mesh=NoMesh(), journal=Journal(), rng=Random(1), changed=self._change,
        )  # fmt: skip

    def _change(self) -> None:
        self.changes += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Scripted]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.sourced.run)
            await wait_all_tasks_blocked()
            yield self.source
            nursery.cancel_scope.cancel()

    @property
    def notes(self) -> list[str]:
        return [entry.message for entry in self.said if entry.event == "source_note"]


async def test_what_is_offered_is_served() -> None:
    case = Case()
    async with case.running() as source:
        assert not case.sourced.heard.is_set()
        await source.offer("a", "b")
        assert case.sourced.heard.is_set()
        assert {name: one.state for name, one in case.hosted.items()} == {
            "a": "ready",
            "b": "ready",
        }
        engines = len(case.echo.engines)
        await source.offer("b", "a")
        assert len(case.echo.engines) == engines
    assert case.said == []


async def test_name_that_is_taken_becomes_another() -> None:
    case = Case()
    case.hosted["m"] = mine = case._host(Offer(ModelId("m"), case.source._open))
    async with case.running() as source:
        await source.offer("m")
        assert case.hosted["m"] is mine
        assert case.hosted["m@foreign:8080"].id == "m@foreign:8080"
        assert case.hosted["m@foreign:8080"].state == "ready"


async def test_name_that_is_taken_twice_is_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    for name in ("m", "m@foreign:8080"):
        case.hosted[name] = case._host(Offer(ModelId(name), case.source._open))
    async with case.running() as source:
        await source.offer("m")
        await source.offer("m")
        assert len(case.hosted) == 2
        monkeypatch.setattr(module, "MODELS", 2)
        await source.offer("n")
    assert [note.split(" is not served")[0] for note in case.notes] == [
        "foreign:8080: m", "foreign:8080: n"
    ]  # fmt: skip


async def test_what_is_no_longer_offered_ends_when_its_answers_have(
    autojump_clock: MockClock,
) -> None:
    case = Case()
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("a"), prompt=TextPrompt(text="one two three")
    )
    async with case.running() as source:
        await source.offer("a")
        await source.offer("a", "b")
        engine, changes = case.echo.engines[0], case.changes
        async with case.hosted["a"].generate(request) as deltas:
            await anext(deltas)
            await source.offer("b")
            assert list(case.hosted) == ["b"]
            assert case.changes > changes
            assert "".join([delta.text async for delta in deltas]) == " two three"
        await wait_all_tasks_blocked()
        assert engine._ended.is_set()
        await source.offer("a", "b")
        assert sorted(case.hosted) == ["a", "b"]
    assert [entry.event for entry in case.said] == ["model_withdrawn"]


async def test_answer_that_does_not_end_is_cut_off_at_last(autojump_clock: MockClock) -> None:
    case = Case()
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("a"), prompt=TextPrompt(text="one two three")
    )
    async with case.running() as source:
        await source.offer("a")
        async with case.hosted["a"].generate(request):
            await source.offer()
            await trio.sleep(module.DRAIN + 1)
            assert case.echo.engines[0]._ended.is_set()


async def test_notes_reach_the_log() -> None:
    case = Case()
    async with case.running() as source:
        source.note("out of reach")
        assert case.sourced.heard.is_set()
    assert case.notes == ["foreign:8080: out of reach"]


async def test_last_word_of_a_source_is_its_state() -> None:
    case = Case()
    assert (case.sourced.name, case.sourced.state) == ("foreign:8080", "starting")
    async with case.running() as source:
        source.note("out of reach")
        assert (case.sourced.state, case.sourced.reason) == ("failed", "out of reach")
        source.note("it lists 129 models")
        await source.offer("a")
        assert (case.sourced.state, case.sourced.reason) == ("ready", "")
        case.hosted["b"] = case.hosted["b@foreign:8080"] = case.hosted["a"]
        await source.offer("a", "b")
        assert case.sourced.state == "ready"
        assert case.sourced.reason.startswith("b is not served")


async def test_source_that_raises_costs_the_node_nothing() -> None:
    case = Case(error=ZeroDivisionError("a defect"))
    async with case.running():
        assert case.notes == ["foreign:8080: its plugin failed: ZeroDivisionError('a defect')"]
        assert case.sourced.state == "failed"
