import pytest
import trio
import trio.testing

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import DetokenizeQuery, EmbedQuery, InferenceRequest, Text, TextPrompt
from p2p_mesh.errors import EngineDied, Overloaded, RequestError, UnknownModel
from p2p_mesh.testing.inference import ScriptedInference, deltas


def request(model: str = "tiny") -> InferenceRequest:
    return InferenceRequest(
        id=RequestId("1"), model=ModelId(model), prompt=TextPrompt(text="hello")
    )


def test_deltas_end_with_their_usage() -> None:
    *grown, end = deltas("a", "b", finish="length")
    assert [delta.text for delta in grown] == ["a", "b"]
    assert end.finish == "length"
    assert end.usage is not None
    assert end.usage.completion_tokens == 2


async def test_script_is_played_for_each_request() -> None:
    inference = ScriptedInference(*deltas("a", "b"))
    for _ in range(2):
        async with inference.answer(request()) as answer:
            assert inference.active == 1
            assert [delta.text async for delta in answer] == ["a", "b", ""]
    assert inference.requests == [request(), request()]
    assert inference.active == 0
    assert not inference.cancelled.is_set()


async def test_first_error_is_raised_on_entering() -> None:
    with pytest.raises(Overloaded):
        async with ScriptedInference(Overloaded("full")).answer(request()):
            raise AssertionError


async def test_later_error_is_raised_in_its_place() -> None:
    inference = ScriptedInference(*deltas("a"), EngineDied("it ended"))
    async with inference.answer(request()) as answer:
        assert (await anext(answer)).text == "a"
        await anext(answer)
        with pytest.raises(EngineDied):
            await anext(answer)


async def test_unknown_model() -> None:
    with pytest.raises(UnknownModel, match="tiny"):
        async with ScriptedInference().answer(request("huge")):
            raise AssertionError


async def test_leaving_early_is_noted() -> None:
    inference = ScriptedInference(trio.Event(), *deltas("a"))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def ask() -> None:
            async with inference.answer(request()) as answer:
                await anext(answer)

        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert inference.cancelled.is_set()


async def test_queries_have_the_replies_of_their_kind() -> None:
    query = DetokenizeQuery(model=ModelId("tiny"), tokens=(1,))
    inference = ScriptedInference(replies={DetokenizeQuery: Text(text="x")})
    assert await inference.query(query) == Text(text="x")
    assert inference.queries == [query]
    with pytest.raises(RequestError, match="cannot"):
        await inference.query(EmbedQuery(model=ModelId("tiny"), inputs=("x",)))
    with pytest.raises(UnknownModel):
        await inference.query(DetokenizeQuery(model=ModelId("huge"), tokens=(1,)))


async def test_queries_may_be_refused_or_computed() -> None:
    query = DetokenizeQuery(model=ModelId("tiny"), tokens=(1, 2))
    with pytest.raises(Overloaded):
        await ScriptedInference(replies={DetokenizeQuery: Overloaded("full")}).query(query)
    counted = ScriptedInference(replies=lambda asked: Text(text=asked.model))
    assert await counted.query(query) == Text(text="tiny")
