"""The models of a foreign server are offered as it lists them."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from meshnode_openai_endpoint import meshnode_sources
from meshnode_openai_endpoint.messages import Listed, Listing
from meshnode_openai_endpoint.source import (
    MODELS,
    POLL,
    EndpointSource,
    cut,
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

    def __init__(self, foreign: Foreign) -> None:
        self.source = EndpointSource(ENDPOINT, foreign)
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
