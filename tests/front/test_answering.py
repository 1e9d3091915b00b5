import json
import random
from typing import Any

import httpx
import httpx2
import openai
import pytest
import trio
import trio.testing
from starlette.types import Message

from p2p_mesh.core.records import (
    CallDelta,
    ChatPrompt,
    Delta,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from p2p_mesh.errors import (
    ContextExceeded,
    EngineDied,
    Loading,
    MeshError,
    Overloaded,
    RemoteError,
    RequestError,
)
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import Policy
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.testing.inference import ScriptedInference, Step, deltas

# The SDK leaves its own generators unfinished at `[DONE]`.
sdk_leftovers = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
HELLO = deltas("Hel", "lo")


def front(
    inference: ScriptedInference,
    *,
    policy: Policy | None = None,
    entries: list[Entry] | None = None,
    remote_media: bool = False,
) -> Any:
    return create_app(
        inference,
        policy=policy or Policy(),
        clock=lambda: 1_700_000_000.9,
        random=random.Random(1),
        journal=Journal((entries if entries is not None else []).append),
        remote_media=remote_media,
    )


def client(*steps: Step, **options: Any) -> httpx.AsyncClient:
    app = front(ScriptedInference(*steps), **options)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:9337")


def over(inference: ScriptedInference, *, remote_media: bool = False) -> httpx.AsyncClient:
    app = front(inference, remote_media=remote_media)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:9337")


def sdk(*steps: Step, strict: bool = True, api_key: str = "any", **options: Any) -> Any:
    app = front(ScriptedInference(*steps), **options)
    return openai.AsyncOpenAI(
        base_url="http://localhost:9337/v1",
        api_key=api_key,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=httpx2.ASGITransport(app)),
        _strict_response_validation=strict,
    )


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_chat_is_answered() -> None:
    response = await client(*HELLO).post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello"
    assert response.json()["usage"]["total_tokens"] == 5
    assert response.headers["x-request-id"] == response.json()["id"]


async def test_trailing_slash_is_the_same_path() -> None:
    for path in ("/v1/chat/completions/", "/v1/completions/"):
        body = {"model": "tiny", "prompt": "x"} if "chat" not in path else CHAT
        assert (await client(*HELLO).post(path, json=body)).status_code == 200


async def test_chance_and_clock_are_drawn_here() -> None:
    inference = ScriptedInference(*HELLO)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(front(inference)), base_url="http://localhost"
    ) as http:
        await http.post("/v1/chat/completions", json=CHAT)
        await http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "seed": 5})
    first, second = inference.requests
    chance = random.Random(1)
    assert first.id == f"chatcmpl-{chance.getrandbits(128):032x}"
    assert first.sampling.seed == chance.getrandbits(63)
    assert second.id == f"cmpl-{chance.getrandbits(128):032x}"
    assert second.sampling.seed == 5
    assert first.asked_at == 1_700_000_000
    assert isinstance(first.prompt, ChatPrompt)
    assert second.prompt == TextPrompt(text="x")


async def test_stream_has_chunks_and_its_end() -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    response = await client(*HELLO).post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert len({chunk["id"] for chunk in chunks}) == 1


ERRORS: list[tuple[MeshError, int, str | None]] = [
    (RequestError("too long", param="messages"), 400, None),
    (Overloaded("the queue is full", retry_after=3.2), 429, "4"),
    (Loading("at 40 %", retry_after=2), 503, "2"),
    (EngineDied("it ended"), 503, "1"),
    (RemoteError("a peer broke off"), 502, None),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("error", "status", "wait"), ERRORS)
async def test_error_before_the_first_delta_is_a_status(
    error: MeshError, status: int, wait: str | None, is_late: bool, stream: bool
) -> None:
    event = trio.Event()
    event.set()
    steps: list[Step] = [event, error] if is_late else [error]
    response = await client(*steps).post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == status
    assert response.headers.get("retry-after") == wait
    assert response.json()["error"] == {
        "message": str(error),
        "type": response.json()["error"]["type"],
        "param": error.param,
        "code": error.code,
    }


async def test_error_after_the_first_delta_is_an_event() -> None:
    steps = (Delta(text="Hel"), EngineDied("it ended"))
    response = await client(*steps).post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.status_code == 200
    *_, grown, last = events(response)
    assert grown["choices"][0]["delta"] == {"content": "Hel"}
    assert last["error"]["code"] == "engine_died"
    assert last["error"]["type"] == "server_error"
    assert last["error"]["partial"] is True


async def test_error_after_the_first_delta_is_a_status_without_a_stream() -> None:
    steps = (Delta(text="Hel"), EngineDied("it ended"))
    response = await client(*steps).post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 503
    found = response.json()
    assert found["error"]["code"] == "engine_died"
    assert found["error"]["partial"] is True
    (choice,) = found["partial"]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", None)
    assert found["partial"]["usage"] is None


async def test_error_before_the_first_delta_has_no_partial_answer() -> None:
    response = await client(EngineDied("it ended")).post("/v1/chat/completions", json=CHAT)
    assert "partial" not in response.json()["error"]


async def test_client_is_told_by_its_address_and_its_user() -> None:
    inference = ScriptedInference(*HELLO)
    for user in ({}, {"user": "kim"}):
        await over(inference).post("/v1/chat/completions", json={**CHAT, **user})
    await over(inference).post("/v1/completions", json={"model": "tiny", "prompt": "x"})
    assert inference.clients == ["127.0.0.1", "127.0.0.1/kim", "127.0.0.1"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_conversation_is_told_by_the_key_that_its_client_gives(path: str) -> None:
    inference = ScriptedInference(*HELLO)
    asked = CHAT if "chat" in path else {"model": "tiny", "prompt": "x"}
    for more in ({}, {"prompt_cache_key": "mine"}):
        await over(inference).post(path, json={**asked, **more})
    assert inference.conversations == ["", "mine"]


async def test_prompt_that_is_too_long_is_named_with_both_numbers() -> None:
    error = ContextExceeded("the prompt has 900 tokens; there is room for 512", param="messages")
    for stream in (False, True):
        response = await client(error).post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert response.status_code == 400
        assert response.json()["error"] == {
            "message": "the prompt has 900 tokens; there is room for 512",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_one_answer(stream: bool) -> None:
    inference = ScriptedInference(*HELLO)
    body = {"model": "tiny", "prompt": ["a", [5], "c"], "stream": stream}
    response = await over(inference).post("/v1/completions", json=body)
    assert {request.prompt for request in inference.requests} == {
        TextPrompt(text="a"), TokenPrompt(tokens=(5,)), TextPrompt(text="c"),
    }  # fmt: skip
    assert len({request.id for request in inference.requests}) == 3
    if not stream:
        found = response.json()
        assert [(one["index"], one["text"]) for one in found["choices"]] == [
            (0, "Hello"), (1, "Hello"), (2, "Hello"),
        ]  # fmt: skip
        assert found["usage"]["total_tokens"] == 15
        return
    *chunks, done = events(response)
    assert done == "[DONE]"
    assert sorted(
        (chunk["choices"][0]["index"], chunk["choices"][0]["text"]) for chunk in chunks
    ) == [(place, text) for place in range(3) for text in ("", "Hel", "lo")]


async def test_error_of_one_prompt_ends_all() -> None:
    inference = ScriptedInference(Delta(text="a"), Overloaded("full"))
    body = {"model": "tiny", "prompt": ["a", "b"]}
    response = await over(inference).post("/v1/completions", json=body)
    assert response.status_code == 429
    assert inference.active == 0


@pytest.mark.parametrize("steps", [(), (Delta(text="Hel"),)])
async def test_answer_that_breaks_off_is_an_error(steps: tuple[Delta, ...]) -> None:
    whole = await client(*steps).post("/v1/chat/completions", json=CHAT)
    assert whole.status_code == 502
    stream = await client(*steps).post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert "[DONE]" not in stream.text
    assert stream.status_code == (200 if steps else 502)
    assert "bad_peer" in stream.text


@pytest.mark.parametrize("steps", [(), (Delta(text="Hel"),)])
@pytest.mark.parametrize("stream", [False, True])
async def test_unforeseen_error_goes_to_the_journal_only(
    steps: tuple[Delta, ...], stream: bool
) -> None:
    entries: list[Entry] = []
    http = client(*steps, ZeroDivisionError("secret"), entries=entries)
    response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == (200 if steps and stream else 500)
    assert "internal_error" in response.text
    assert "secret" not in response.text
    assert "[DONE]" not in response.text
    (entry,) = entries
    assert entry.fields["reason"] == "ZeroDivisionError('secret')"


class Departing:
    """A client of the ASGI application that leaves when it is told to."""

    def __init__(self, app: Any, body: dict[str, Any]) -> None:
        self.app = app
        self.body = json.dumps(body).encode()
        self.leave = trio.Event()
        self.sent: list[Message] = []
        self.grew = trio.Event()
        self._is_asked = False

    async def run(self) -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        path = "/v1/chat/completions"
        await self.app(
            {"type": "http", "method": "POST", "path": path, "headers": headers},
            self._receive,
            self._send,
        )

    async def _receive(self) -> Message:
        if self._is_asked:
            await self.leave.wait()
            return {"type": "http.disconnect"}
        self._is_asked = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def _send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)
        self.grew.set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("steps", [(), (Delta(text="Hel"),)])
async def test_client_that_leaves_cancels_its_answer(
    steps: tuple[Delta, ...], stream: bool
) -> None:
    inference = ScriptedInference(*steps, trio.Event(), *HELLO)
    leaver = Departing(front(inference), {**CHAT, "stream": stream})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leaver.run)
        await trio.testing.wait_all_tasks_blocked()
        assert inference.active == 1
        leaver.leave.set()
        with trio.fail_after(1):
            await inference.cancelled.wait()
    assert inference.active == 0
    assert bool(leaver.sent) is bool(stream and steps)


async def test_deltas_that_are_queued_are_one_write() -> None:
    inference = ScriptedInference(*deltas(*"abcdefghij"))
    stayer = Departing(front(inference), {**CHAT, "stream": True})
    await stayer.run()
    writes = [message for message in stayer.sent if message.get("body")]
    assert len(writes) <= 2
    assert b"".join(message["body"] for message in writes).count(b"data: ") == 13


async def test_head_waits_for_the_first_delta_and_no_longer() -> None:
    first, second = trio.Event(), trio.Event()
    stayer = Departing(
        front(ScriptedInference(first, Delta(tokens=(1,)), second, *HELLO)),
        {**CHAT, "stream": True},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stayer.run)
        await trio.testing.wait_all_tasks_blocked()
        assert stayer.sent == []
        first.set()
        await trio.testing.wait_all_tasks_blocked()
        assert stayer.sent[0]["status"] == 200
        second.set()
    assert stayer.sent[-1]["more_body"] is False


async def test_strict_sdk_reads_a_chat() -> None:
    async with sdk(*HELLO) as api:
        answer = await api.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "Hello"
        assert answer.usage.prompt_tokens_details.cached_tokens == 1
        # An answer goes back into the conversation as the SDK keeps it.
        messages = [*CHAT["messages"], answer.choices[0].message, *CHAT["messages"]]
        await api.chat.completions.create(model="tiny", messages=messages)


@sdk_leftovers
async def test_strict_sdk_reads_a_streamed_chat() -> None:
    async with sdk(*HELLO) as api:
        chunks = [
            chunk
            async for chunk in await api.chat.completions.create(
                **CHAT, stream=True, stream_options={"include_usage": True}
            )
        ]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hello"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 5


async def test_strict_sdk_reads_a_completion() -> None:
    async with sdk(*HELLO) as api:
        answer = await api.completions.create(model="tiny", prompt="x")
    assert answer.choices[0].text == "Hello"


@sdk_leftovers
async def test_sdk_reads_a_streamed_completion() -> None:
    # Not in strict mode: it asks for a finish_reason in every chunk, which OpenAI does not send.
    async with sdk(*HELLO, strict=False) as api:
        answer = await api.completions.create(model="tiny", prompt="x", stream=True)
        chunks = [chunk async for chunk in answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RequestError("x", param="y"), openai.BadRequestError),
        (Overloaded("x"), openai.RateLimitError),
        (Loading("x"), openai.InternalServerError),
    ],
)
async def test_sdk_raises_its_own_errors(error: MeshError, raised: type[Exception]) -> None:
    async with sdk(error) as api:
        for stream in (False, True):
            with pytest.raises(raised):
                await api.chat.completions.create(**CHAT, stream=stream)


@sdk_leftovers
async def test_sdk_raises_at_an_error_within_a_stream() -> None:
    async with sdk(Delta(text="Hel"), EngineDied("it ended")) as api:
        with pytest.raises(openai.APIError, match="it ended"):
            _ = [c async for c in await api.chat.completions.create(**CHAT, stream=True)]


@pytest.mark.parametrize(("remote_media", "why"), [(False, "--remote-media"), (True, "fetched")])
@pytest.mark.parametrize("stream", [False, True])
async def test_link_to_what_is_not_public_is_refused(
    stream: bool, remote_media: bool, why: str
) -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}
    messages = [{"role": "user", "content": [image]}]
    http = over(ScriptedInference(*HELLO), remote_media=remote_media)
    body = {"model": "tiny", "messages": messages, "stream": stream}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert why in error["message"]


LOG = TokenLogprob(token=1, piece=b"hi", logprob=-0.5, top=((1, b"hi", -0.5),))
USAGE = Usage(prompt_tokens=3, completion_tokens=2)
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather"}}]
CALLING = (
    Delta(reasoning="well"),
    Delta(calls=(CallDelta(name="weather", arguments='{"a"'),)),
    Delta(calls=(CallDelta(arguments=": 1}"), CallDelta(index=1, name="weather"))),
    Delta(calls=(CallDelta(index=1, arguments="{}"),), finish="tool_calls", usage=USAGE),
)


@sdk_leftovers
async def test_strict_sdk_reads_calls() -> None:
    async with sdk(*CALLING) as api:
        answer = await api.chat.completions.create(**CHAT, tools=TOOLS)
        async with api.chat.completions.stream(**CHAT, tools=TOOLS) as stream:
            streamed = await stream.get_final_completion()
    (choice,) = answer.choices
    assert choice.finish_reason == streamed.choices[0].finish_reason == "tool_calls"
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"a": 1}', "{}"]
    ids = [call.id for call in choice.message.tool_calls]
    assert len({*ids}) == 2
    assert choice.message.reasoning_content == "well"
    parts = streamed.choices[0].message.tool_calls
    assert [call.function.arguments for call in parts] == ['{"a": 1}', "{}"]
    assert choice.message.content is None


async def test_strict_sdk_reads_logprobs_and_choices() -> None:
    steps = [Delta(choice=choice, text="hi", tokens=(1,), logprobs=(LOG,), finish="stop")
             for choice in (1, 0)]  # fmt: skip
    async with sdk(*steps, Delta(usage=USAGE)) as api:
        chat = await api.chat.completions.create(**CHAT, n=2, logprobs=True, top_logprobs=1)
        text = await api.completions.create(model="tiny", prompt="x", n=2, logprobs=1)
        best = await api.completions.create(model="tiny", prompt="x", best_of=2)
    assert [choice.index for choice in chat.choices] == [0, 1]
    assert chat.choices[0].logprobs.content[0].top_logprobs[0].token == "hi"
    assert text.choices[1].logprobs.top_logprobs == [{"hi": -0.5}]
    assert [(choice.index, choice.logprobs) for choice in best.choices] == [(0, None)]
