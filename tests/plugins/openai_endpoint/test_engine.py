"""A model of a foreign server as an engine, with all that such a server may do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from meshnode_openai_endpoint import engine as module
from meshnode_openai_endpoint.engine import EndpointEngine, open_engine
from meshnode_openai_endpoint.messages import Listed
from meshnode_openai_endpoint.server import Server, open_server
from trio.testing import MockClock

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    InferenceRequest,
    RerankQuery,
    Scores,
    TextPrompt,
    TokenizeQuery,
    Tokens,
    Tool,
    Usage,
)
from p2p_mesh.errors import (
    ContextExceeded,
    EngineDied,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
)
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import Policy
from p2p_mesh.http.server import serve
from p2p_mesh.journal import Journal
from p2p_mesh.settings import Endpoint
from p2p_mesh.testing.inference import ScriptedInference, deltas
from tests.plugins.openai_endpoint.foreign import (
    DONE,
    ENDPOINT,
    REFUSED,
    USAGE,
    Foreign,
    Part,
    chat,
    ended,
    event,
    said,
)

CHAT = "/v1/chat/completions"
USED = Usage(prompt_tokens=3, completion_tokens=2)


@asynccontextmanager
async def opened(
    foreign: Foreign, owned_by: str = "meshnode"
) -> AsyncIterator[tuple[EndpointEngine, Server]]:
    listed = Listed("m", owned_by=owned_by)
    async with open_server(ENDPOINT, foreign) as server, open_engine(server, listed) as engine:
        yield engine, server


async def all_of(engine: EndpointEngine, request: InferenceRequest | None = None) -> list[Delta]:
    async with engine.generate(request or chat()) as found:
        return [delta async for delta in found]


async def answered(*parts: Part) -> list[Delta]:
    async with opened(Foreign(**{CHAT: parts})) as (engine, _):
        return await all_of(engine)


async def test_engine_describes_itself() -> None:
    async with opened(Foreign()) as (engine, _):
        about = engine.describe()
    assert (about.resumable, about.numerics, about.slots) == (False, "", 8)
    assert (about.device, about.context, about.capabilities) == (
        "http://foreign:8080", 0, frozenset({"generate"})
    )  # fmt: skip


async def test_answer_is_streamed() -> None:
    assert await answered(said("hel"), said("lo"), ended(), USAGE, DONE) == [
        Delta(text="hel"), Delta(text="lo"), Delta(finish="stop"), Delta(usage=USED),
    ]  # fmt: skip


async def test_events_may_be_cut_and_joined() -> None:
    whole = said("a") + ended("length") + USAGE + DONE
    found = await answered(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
    assert found == await answered(whole)
    assert [delta.finish for delta in found] == [None, "length", None]


async def test_done_may_be_missing_after_a_finish() -> None:
    assert (await answered(said("a"), ended(), USAGE))[-1] == Delta(usage=USED)
    with pytest.raises(EngineDied, match="broke off its answer"):
        await answered(said("a"))


async def test_what_follows_the_end_is_nothing() -> None:
    found = await answered(said("a"), ended(), DONE + said("b"), said("c"))
    assert [delta.text for delta in found] == ["a", "", ""]


async def test_long_tail_is_broken_off(autojump_clock: MockClock) -> None:
    await answered(said("a"), ended(), DONE, trio.Event())
    assert trio.current_time() == module.TAIL


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        ((400, {"error": {"message": "no such field"}}), RequestError, "no such field"),
        ((400, {"error": {"message": "x", "code": "context_length_exceeded"}}),
         ContextExceeded, "x"),
        ((401, {}), Unavailable, "put it into MESHNODE_ENDPOINT_KEY"),
        ((429, {}), Overloaded, "is busy"),
        ((500, {}), Unavailable, "failed"),
        (REFUSED, EngineDied, "out of reach: refused"),
        (httpx.ReadTimeout(""), EngineDied, "said nothing for too long"),
        ([event(error={"message": "out of memory", "code": 500})], Unavailable, "out of memory"),
        ([said("a"), httpx.ReadError("reset")], EngineDied, "broke off: reset"),
        ([b"data: nonsense\n\n"], RemoteError, "is no Chunk"),
        ([b"data: " + b"x" * (5 << 20)], RemoteError, "an event of more than"),
        ([DONE], RemoteError, "before it began"),
        ([], EngineDied, "broke off"),
    ],
)  # fmt: skip
async def test_failures_have_their_kind(reply: Any, kind: type[Exception], words: str) -> None:
    async with opened(Foreign(**{CHAT: reply})) as (engine, _):
        with pytest.raises(kind, match=words) as caught:
            await all_of(engine)
    assert type(caught.value) is kind


BITS = [said("a"), ended(), USAGE, DONE, b"data: ", b"{", b"\n\n", b'{"choices":[{"index":9}]}',
        b'data: {"error": 5}\n\n', b'data: {"choices":[{"delta":{"content":5}}]}\n\n', b"\xff",
        b": x\n", b"data: null\n\n", b"data: []\n\n"]  # fmt: skip


@given(st.lists(st.sampled_from(BITS) | st.binary(max_size=9), max_size=9))
def test_whatever_a_server_streams_is_an_answer_or_its_fault(parts: list[bytes]) -> None:
    async def ask() -> None:
        try:
            found = await answered(*parts)
        except (RemoteError, Unavailable):
            return
        assert [delta.usage is None for delta in found] == [True] * (len(found) - 1) + [False]

    trio.run(ask)


async def test_silence_ends_an_answer(autojump_clock: MockClock) -> None:
    foreign = Foreign(**{CHAT: [said("a"), trio.Event()]})
    async with opened(foreign) as (engine, _), engine.generate(chat()) as found:
        assert await anext(found) == Delta(text="a")
        with pytest.raises(EngineDied, match="said nothing for 300 s"):
            await anext(found)
    assert trio.current_time() == pytest.approx(300)
    assert foreign.streams[0].closed.is_set()


async def test_comments_do_not_keep_an_answer_alive(autojump_clock: MockClock) -> None:
    class Drip(Foreign):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=_comments())

    async def _comments() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(10)
            yield b": still here\n\n"

    async with opened(Drip()) as (engine, _):
        with pytest.raises(EngineDied, match="said nothing for 300 s"):
            await all_of(engine)


async def test_leaving_an_answer_closes_its_stream() -> None:
    foreign = Foreign(**{CHAT: [said("a"), trio.Event()]})
    async with opened(foreign) as (engine, _):
        async with engine.generate(chat()) as found:
            await anext(found)
        assert foreign.streams[0].closed.is_set()


async def test_answer_may_be_left_in_another_task() -> None:
    foreign = Foreign(**{CHAT: [said("a"), trio.Event()]})
    async with opened(foreign) as (engine, _):
        answer = engine.generate(chat())

        async def begin() -> None:
            assert await anext(await answer.__aenter__()) == Delta(text="a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
        await answer.__aexit__(None, None, None)
        assert foreign.streams[0].closed.is_set()


async def test_engine_ends_when_its_server_is_gone() -> None:
    foreign = Foreign(**{CHAT: REFUSED})
    async with opened(foreign) as (engine, server):
        for _ in range(2):
            with pytest.raises(EngineDied):
                await all_of(engine)
        assert "out of reach: refused" in await engine.wait_ended()
        with pytest.raises(EngineDied, match="out of reach"):
            await all_of(engine)
        assert len(foreign.bodies(CHAT)) == 2
    assert server.listeners == set()
    await engine.close()


async def test_queries() -> None:
    rows = [{"index": 0, "relevance_score": 0.5}]
    foreign = Foreign(**{
        "/v1/rerank": {"results": rows},
        "/apply-template": {"prompt": "<user>hi"},
        "/tokenize": {"tokens": [1, 2]},
    })  # fmt: skip
    async with opened(foreign, "other") as (engine, _):
        query = RerankQuery(model=ModelId("m"), query="q", documents=("d",))
        assert await engine.query(query) == Scores(scores=(0.5,), prompt_tokens=0)
        prompt = ChatPrompt(messages=({"role": "user", "content": "hi"},))
        tokens = await engine.query(TokenizeQuery(model=ModelId("m"), prompt=prompt))
        assert tokens == Tokens(tokens=(1, 2))
    assert foreign.bodies("/tokenize")[0]["content"] == "<user>hi"


async def test_llama_server_is_not_asked_for_what_it_ignores() -> None:
    async with opened(Foreign(**{"/health": {}}), "llamacpp") as (engine, _):
        with pytest.raises(RequestError, match="suffix: ") as caught:
            await all_of(engine, chat(prompt=TextPrompt(text="a", suffix="b")))
    assert caught.value.param == "suffix"


@pytest.mark.parametrize("status", [200, 400])
async def test_prompt_that_is_too_long_names_its_field(status: int) -> None:
    error = {"message": "x", "type": "exceed_context_size_error"}
    reply = [event(error=error)] if status == 200 else (status, {"error": error})
    async with opened(Foreign(**{CHAT: reply})) as (engine, _):
        with pytest.raises(ContextExceeded) as caught:
            await all_of(engine)
    assert caught.value.param == "messages"


async def test_query_that_the_server_lacks_is_the_clients_to_mend() -> None:
    async with opened(Foreign()) as (engine, _):
        with pytest.raises(RequestError, match="does not do this: no such path"):
            await engine.query(RerankQuery(model=ModelId("m"), query="q", documents=("d",)))


@asynccontextmanager
async def front(inference: ScriptedInference) -> AsyncIterator[EndpointEngine]:
    """An engine of our own front, over a socket."""
    app = create_app(
        inference, policy=Policy(), clock=lambda: 0.0, random=Random(1), journal=Journal()
    )
    async with trio.open_nursery() as nursery:
        port = await nursery.start(partial(serve, app, host="localhost", port=0))
        async with (
            open_server(Endpoint(f"http://localhost:{port}")) as server,
            open_engine(server, Listed("tiny", owned_by="meshnode")) as engine,
        ):
            yield engine
        nursery.cancel_scope.cancel()


async def test_another_node_is_a_foreign_server_too() -> None:
    inference = ScriptedInference(*deltas("hel", "lo"))
    async with front(inference) as engine:
        for _ in range(3):  # over one connection
            found = await all_of(engine, chat("hello", max_tokens=5))
            assert "".join(delta.text for delta in found) == "hello"
            assert found[-1].usage == Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
    assert inference.requests[0].max_tokens == 5


async def test_answer_that_is_left_is_cancelled_at_the_server() -> None:
    inference = ScriptedInference(Delta(text="a"), trio.Event())
    async with front(inference) as engine:
        async with engine.generate(chat()) as found:
            assert (await anext(found)).text == "a"
        with trio.fail_after(5):
            await inference.cancelled.wait()


ADD = Tool(name="add", parameters={"type": "object", "properties": {}})


async def test_another_node_templates_a_chat_itself() -> None:
    inference = ScriptedInference(replies={TokenizeQuery: Tokens(tokens=(1, 2))})
    prompt = ChatPrompt(
        messages=({"role": "user", "content": "hi"},), tools=(ADD,),
        tool_choice="required", parallel_tool_calls=False, variables={"enable_thinking": False},
    )  # fmt: skip
    async with front(inference) as engine:
        found = await engine.query(TokenizeQuery(model=ModelId("tiny"), prompt=prompt))
    assert found == Tokens(tokens=(1, 2))
    (query,) = inference.queries
    assert isinstance(query, TokenizeQuery)
    assert (query.model, query.prompt) == ("tiny", prompt)
