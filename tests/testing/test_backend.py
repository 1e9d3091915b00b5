"""The echo backend keeps the contract of serve/backend.py."""

import math
import struct
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2p_mesh.core.course import Course
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    ModelFile,
    RerankQuery,
    Resources,
    Resume,
    Scores,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenLogprob,
    TokenPrompt,
    Tokens,
    Usage,
    Vectors,
)
from p2p_mesh.errors import EngineDied, RequestError
from p2p_mesh.serve.backend import Backend, Fit, Load, Refusal
from p2p_mesh.testing.backend import Echo, EchoEngine
from p2p_mesh.testing.mesh import NoMesh

M = ModelId("m")
LOAD = Load(
    ModelFile(
        id=ModelId("m"), path="/m.gguf", size_bytes=1, architecture="llama", context_length=64,
        kv_bytes_per_token=1,
    )
)  # fmt: skip


def ask(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=prompt)


async def deltas(engine: EchoEngine, prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[Delta]:
    return await answer(engine, ask(prompt))


async def answer(engine: EchoEngine, request: InferenceRequest, **more: Any) -> list[Delta]:
    async with engine.generate(msgspec.structs.replace(request, **more)) as found:
        return [delta async for delta in found]


async def test_echo_says_it_again() -> None:
    backend: Backend = Echo()
    assert isinstance(backend, Echo)
    async with backend.open(LOAD, NoMesh()) as engine:
        found = await deltas(engine, ChatPrompt(messages=({"role": "user", "content": "a bc"},)))
        assert [delta.text for delta in found] == ["a", " bc", ""]
        assert found[-1].usage == Usage(prompt_tokens=2, completion_tokens=2)
        assert await deltas(engine, TextPrompt(text="x")) != []
        with pytest.raises(RequestError):
            await deltas(engine, TokenPrompt(tokens=(1,)))


async def test_answer_may_be_left_in_another_task() -> None:
    async with Echo().open(LOAD, NoMesh()) as engine:
        answer = engine.generate(ask(TextPrompt(text="x")))

        async def begin() -> None:
            found = await answer.__aenter__()
            assert [delta.text async for delta in found] == ["x", ""]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
        await answer.__aexit__(None, None, None)
        assert engine.active == 0


async def test_dead_engine_says_so() -> None:
    async with Echo().open(LOAD, NoMesh()) as engine:
        engine.die("out of memory")
        assert await engine.wait_ended() == "out of memory"
        with pytest.raises(EngineDied, match="out of memory"):
            await deltas(engine, TextPrompt(text="x"))


async def test_each_choice_is_the_same_and_ends() -> None:
    request = InferenceRequest(
        id=RequestId("r"), model=M, prompt=TextPrompt(text="a bc"), choices=2, logprobs=1
    )
    async with Echo().open(LOAD, NoMesh()) as engine:
        found = await answer(engine, request)
    course = Course(request)
    for delta in found:
        course.check(delta)
    assert [(delta.choice, delta.text) for delta in found[:4]] == [
        (0, "a"), (1, "a"), (0, " bc"), (1, " bc"),
    ]  # fmt: skip
    assert found[3].logprobs == (
        TokenLogprob(token=2, piece=b" bc", logprob=0.0, top=((2, b" bc", 0.0),)),
    )
    assert found[-1].usage == Usage(prompt_tokens=2, completion_tokens=4)


async def test_echo_goes_on_where_it_broke_off() -> None:
    begun = (Resume(choice=0, tokens=(1,), text=1), Resume(choice=1, finished=True))
    async with Echo().open(LOAD, NoMesh()) as engine:
        request = ask(TextPrompt(text="a bc"))
        found = await answer(engine, request, choices=2, resume=begun)
        assert [(delta.choice, delta.text) for delta in found] == [(0, " bc"), (0, "")]
        over = await answer(engine, request, resume=(Resume(finished=True),))
        assert [delta.usage is not None for delta in over] == [True]


async def test_tokens_are_bytes() -> None:
    async with Echo().open(LOAD, NoMesh()) as engine:
        query = TokenizeQuery(model=M, prompt=TextPrompt(text="hé"), with_pieces=True)
        assert await engine.query(query) == Tokens(
            tokens=(104, 195, 169), pieces=(b"h", b"\xc3", b"\xa9")
        )
        back = DetokenizeQuery(model=M, tokens=(104, 195, 169))
        assert await engine.query(back) == Text(text="hé")
        with pytest.raises(RequestError, match="bytes"):
            await engine.query(DetokenizeQuery(model=M, tokens=(256,)))


async def test_vectors_have_length_one_and_differ() -> None:
    async with Echo().open(LOAD, NoMesh()) as engine:
        reply = await engine.query(EmbedQuery(model=M, inputs=("a", "b", (97,))))
    assert isinstance(reply, Vectors)
    first, second, third = reply.vectors
    assert first == third != second
    assert math.hypot(*struct.unpack("<8f", first)) == pytest.approx(1.0)
    assert reply.prompt_tokens == 3


async def test_documents_are_ranked_by_the_words_they_share() -> None:
    query = RerankQuery(model=M, query="red fish", documents=("blue fish", "a car", "red fish"))
    async with Echo().open(LOAD, NoMesh()) as engine:
        assert await engine.query(query) == Scores(scores=(1.0, 0.0, 2.0), prompt_tokens=6)
        engine.die()
        with pytest.raises(EngineDied):
            await engine.query(query)


def test_assessment() -> None:
    resources = Resources(memory_total=10, memory_free=5, threads=1)
    assert isinstance(Echo().assess(LOAD, resources), Fit)
    assert isinstance(Echo(memory=6).assess(LOAD, resources), Refusal)


async def test_frozen_echo_says_nothing_until_it_is_ended(autojump_clock: MockClock) -> None:
    echo = EchoEngine(LOAD, 1.0)
    echo.freeze()
    with trio.move_on_after(1000) as scope:
        await echo.query(TokenizeQuery(model=ModelId("m"), prompt=TextPrompt(text="a")))
    assert scope.cancelled_caught
    await echo.close()
    with pytest.raises(EngineDied):
        await echo.query(TokenizeQuery(model=ModelId("m"), prompt=TextPrompt(text="a")))
