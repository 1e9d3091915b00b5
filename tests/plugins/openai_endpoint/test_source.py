"""The models of a foreign server are offered as it lists them."""

from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import trio
from meshnode_openai_endpoint import meshnode_sources
from meshnode_openai_endpoint.messages import Listed, Listing
from meshnode_openai_endpoint.source import (
    ITSELF,
    MODELS,
    POLL,
    EndpointSource,
    cut,
    is_own,
    model_id,
    offered,
    pause,
)
from trio.testing import MockClock

from p2p_mesh.serve.backend import Offer
from p2p_mesh.settings import Settings
from tests.plugins.openai_endpoint.foreign import ENDPOINT, REFUSED, Foreign


class Watch:
    """What a source tells."""

    def __init__(self, foreign: Foreign, **how: Any) -> None:
        self.source = EndpointSource(ENDPOINT, foreign, **how)
        self.offers: list[Sequence[Offer]] = []
        self.notes: list[str] = []

    async def run(self) -> None:
        await self.source.watch(self.offers.append, self.notes.append)

    @property
    def names(self) -> list[list[str]]:
        return [[one.id for one in offers] for offers in self.offers]


def listing(*names: str, **fields: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, **fields} for name in names]}


def test_name_of_a_file_is_its_stem() -> None:
    ids = ("/models/qwen.gguf", "C:\\m\\qwen.gguf", "qwen.gguf", "org/qwen", ".gguf")
    assert [model_id(Listed(one)) for one in ids] == ["qwen", "qwen", "qwen", "org/qwen", ""]


def test_bad_names_are_passed_over() -> None:
    names = ("good", "with\nbreak", "x" * 201, ".gguf", "good", "other")
    found = offered(Listing([Listed(name) for name in names]))
    assert [one.id for one in found] == ["good", "other"]


def test_what_another_node_offers_from_elsewhere_is_passed_over() -> None:
    models = [Listed("m@localhost:9337", owned_by="meshnode"), Listed("m@8bit", "meshnode"),
              Listed("m@localhost:9337", owned_by="other")]  # fmt: skip
    assert [one.owned_by for one in offered(Listing(models))] == ["meshnode", "other"]


def test_endless_list_is_cut_and_said() -> None:
    found = Listing([Listed(f"m{number}") for number in range(MODELS + 1)])
    assert [len(offered(found)), offered(found)[0].id] == [MODELS, "m0"]
    assert cut(found) == "it lists 129 models; the first 128 are offered"
    assert cut(Listing([])) == ""


def test_pauses_grow_to_those_of_a_good_server() -> None:
    assert [pause(number) for number in (0, 1, 2, 3, 9, 999)] == [10, 0.5, 1, 2, 10, 10]


def test_each_endpoint_is_a_source() -> None:
    found = meshnode_sources(Settings(endpoint=("http://a:1/v1", "https://b")))
    assert [one.name for one in found] == ["a:1", "b:443"]


async def test_list_is_looked_at_again(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    watch = Watch(foreign)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(1)
        foreign.replies["/v1/models"] = listing("m", "n")
        await trio.sleep(POLL)
        nursery.cancel_scope.cancel()
    assert watch.names == [["m"], ["m", "n"]]
    assert watch.notes == []


async def test_server_that_is_away_withdraws_nothing(autojump_clock: MockClock) -> None:
    foreign = Foreign(**{"/v1/models": REFUSED})
    watch = Watch(foreign)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(30)
        assert watch.notes == ["the server at http://foreign:8080 is out of reach: refused"]
        assert watch.offers == []
        foreign.replies["/v1/models"] = listing("m")
        await trio.sleep(POLL)
        foreign.replies["/v1/models"] = REFUSED
        await trio.sleep(2 * POLL)
        nursery.cancel_scope.cancel()
    assert watch.names[-1] == ["m"]
    assert len(watch.notes) == 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [([b"<html>"], "is no Listing"), ({"data": [{"id": 5}]}, "is no Listing"), ((401, {}), "key")],
)
async def test_reason_is_said_once(autojump_clock: MockClock, reply: Any, words: str) -> None:
    watch = Watch(Foreign(**{"/v1/models": reply}))
    with trio.move_on_after(60):
        await watch.run()
    (note,) = watch.notes
    assert words in note


async def test_offer_opens_an_engine() -> None:
    watch = Watch(Foreign())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.testing.wait_all_tasks_blocked()
        ((offer,),) = watch.offers
        async with offer.open() as engine:
            assert "generate" in engine.describe().capabilities
        assert await engine.wait_ended() == "it was closed"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("reply", [listing("m"), (401, {})])
async def test_first_endpoint_speaks_first_however_slow_it_is(reply: Any) -> None:
    gate = trio.Event()

    class Slow(Foreign):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await gate.wait()
            return await super().handle_async_request(request)

    first = Watch(Slow(**{"/v1/models": reply}))
    second = Watch(Foreign(), before=first.source)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(second.run)
        nursery.start_soon(first.run)
        await trio.testing.wait_all_tasks_blocked()
        assert second.names == []
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert second.names == [["m"]]
        nursery.cancel_scope.cancel()


async def test_node_itself_is_said_and_not_asked(autojump_clock: MockClock) -> None:
    foreign = Foreign()
    watch = Watch(foreign, is_self=True)
    with trio.move_on_after(60):
        await watch.run()
    assert (watch.notes, watch.offers, foreign.requests) == ([ITSELF], [], [])
    assert watch.source.spoken.is_set()


def test_node_knows_its_own_url() -> None:
    own = ("http://localhost:9337", "http://127.0.0.1:9337/v1", "http://[::1]:9337")
    others = ("http://localhost:19337", "http://elsewhere:9337", "http://localhost")
    assert [is_own(url, 9337) for url in own + others] == [True] * 3 + [False] * 3
    sources = meshnode_sources(Settings(endpoint=("http://localhost:9337", "http://b"), port=9337))
    assert [one._is_self for one in sources] == [True, False]  # type: ignore[attr-defined]
    assert [one._before for one in sources] == [None, sources[0]]  # type: ignore[attr-defined]


async def test_long_list_is_said_before_it_is_offered() -> None:
    told: list[str] = []
    names = [f"m{number}" for number in range(MODELS + 1)]
    source = EndpointSource(ENDPOINT, Foreign(**{"/v1/models": listing(*names)}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.watch, lambda _: told.append("offer"), told.append)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == ["it lists 129 models; the first 128 are offered", "offer"]
