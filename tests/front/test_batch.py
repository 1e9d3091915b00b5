from collections.abc import Sequence

import pytest
import trio
import trio.testing

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import Delta, InferenceRequest, TextPrompt
from p2p_mesh.errors import Overloaded
from p2p_mesh.front.batch import AT_ONCE, Grown, answers
from p2p_mesh.testing.inference import ScriptedInference, Step


def requests(count: int) -> list[InferenceRequest]:
    return [
        InferenceRequest(
            id=RequestId(str(i)), model=ModelId("tiny"), prompt=TextPrompt(text=str(i))
        )
        for i in range(count)
    ]


async def gather(count: int, *steps: Step) -> tuple[list[Grown], ScriptedInference]:
    inference = ScriptedInference(*steps)
    async with answers(inference.answer, requests(count)) as grown:
        return [one async for one in grown], inference


@pytest.mark.parametrize("count", [1, 2, 20])
async def test_every_delta_comes_with_the_place_of_its_request(count: int) -> None:
    a, b = Delta(text="a"), Delta(text="b")
    found, inference = await gather(count, a, b)
    for place in range(count):
        assert [delta for where, delta in found if where == place] == [a, b]
    assert len(inference.requests) == count
    assert inference.active == 0


@pytest.mark.parametrize("count", [1, 2, 20])
@pytest.mark.parametrize("steps", [(), (Delta(text="a"),)])
async def test_error_comes_out_as_it_is(count: int, steps: Sequence[Delta]) -> None:
    inference = ScriptedInference(*steps, Overloaded("full"))
    with pytest.raises(Overloaded):
        async with answers(inference.answer, requests(count)) as grown:
            _ = [one async for one in grown]
    assert inference.active == 0


async def fail_while_reading(inference: ScriptedInference, count: int) -> None:
    async with answers(inference.answer, requests(count)) as grown:
        await anext(grown)
        raise ZeroDivisionError


@pytest.mark.parametrize("count", [1, 2])
async def test_error_of_the_reader_comes_out_as_it_is(count: int) -> None:
    inference = ScriptedInference(Delta(text="a"), trio.Event())
    with pytest.raises(ZeroDivisionError):
        await fail_while_reading(inference, count)
    assert inference.active == 0


async def test_so_many_at_once_and_no_more() -> None:
    inference = ScriptedInference(trio.Event())
    async with answers(inference.answer, requests(AT_ONCE + 3)), trio.open_nursery():
        await trio.testing.wait_all_tasks_blocked()
        assert inference.active == AT_ONCE
    assert inference.active == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_leaving_cancels_all(count: int) -> None:
    inference = ScriptedInference(Delta(text="a"), trio.Event())
    async with answers(inference.answer, requests(count)) as grown:
        await anext(grown)
        await trio.testing.wait_all_tasks_blocked()
        assert inference.active == count
    assert inference.active == 0
