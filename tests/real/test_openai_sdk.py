"""The openai SDK, as strict as it can be, over every field: against both the node that serves and
the one that asks it, and against models of every kind.
"""

import base64
import json
import math
import struct
from collections.abc import Callable
from typing import Any

import jsonschema
import openai
import pytest
import trio

from p2p_mesh.serve.store import DEFAULT_MODEL
from p2p_mesh.testing.cluster import NodeProcess

MODELS = (DEFAULT_MODEL, "tiny", "slow", "caller", "effort", "mini", "judge")


def sdk(node: NodeProcess) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{node.url()}/v1", api_key="unused", max_retries=0,
        _strict_response_validation=True,
    )  # fmt: skip


async def test_every_operation_on_both_nodes(alice: NodeProcess, bob: NodeProcess) -> None:
    for node in (alice, bob):
        await trio.to_thread.run_sync(_everything, sdk(node))


def _everything(client: openai.OpenAI) -> None:
    with client:
        _models(client)
        _chat(client)
        _completions(client)
        _errors(client)


def _models(client: openai.OpenAI) -> None:
    models = client.models.list()
    assert sorted(model.id for model in models.data) == sorted(MODELS)
    assert (client.models.retrieve(DEFAULT_MODEL)).id == DEFAULT_MODEL


def _chat(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello"}], temperature=0,
        user="me", metadata={"a": "b"}, store=False, service_tier="auto",
    )  # fmt: skip
    choice = whole.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert choice.message.content.rstrip()[-1] in ".!?"
    assert whole.usage is not None
    parts = []
    usage = None
    stream = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello"}], temperature=0,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        usage = chunk.usage or usage
        parts += [one.delta.content or "" for one in chunk.choices]
    assert "".join(parts) == choice.message.content
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def _completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model=DEFAULT_MODEL, prompt="Once upon a time", max_tokens=12, seed=5, stop=["\n\n"]
    )
    assert whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 12
    # OpenAI's own streams have a null finish_reason in every chunk but the last, which its SDK's
    # strict validation of this one operation refuses.
    lenient = openai.OpenAI(base_url=client.base_url, api_key="unused", max_retries=0)
    stream = lenient.completions.create(
        model=DEFAULT_MODEL, prompt="Once upon a time", max_tokens=12, seed=5, stop=["\n\n"],
        stream=True,
    )  # fmt: skip
    assert "".join([chunk.choices[0].text for chunk in stream]) == whole.choices[0].text
    lenient.close()


def _errors(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "hello"}]
    with pytest.raises(openai.NotFoundError, match=DEFAULT_MODEL) as missing:
        client.chat.completions.create(model="gone", messages=messages)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=DEFAULT_MODEL, messages=messages, n=129)
    assert wrong.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=DEFAULT_MODEL, messages=[{"role": "user", "content": "hello " * 9000}]
        )
    assert long.value.code == "context_length_exceeded"
    assert long.value.type == "invalid_request_error"
    assert len([word for word in long.value.message.split() if word.strip(",.;").isdigit()]) >= 2


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Mara", "Orrin"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "time"}}

Check = Callable[[openai.OpenAI], None]


async def against(node: NodeProcess, check: Check) -> None:
    """Runs a check in a thread. Answers do not depend on what came before: the checks ask twice,
    and compare.
    """
    with sdk(node) as client:
        await trio.to_thread.run_sync(check, client)


async def test_choices(alice: NodeProcess) -> None:
    await against(alice, _choices)


def _choices(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=HELLO, n=3, seed=7, max_completion_tokens=20
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model=DEFAULT_MODEL, messages=HELLO, n=3, seed=7, max_tokens=20, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    several = client.completions.create(
        model=DEFAULT_MODEL, prompt=["Mara is", "Orrin is"], n=2, seed=7, max_tokens=8
    )
    alone = client.completions.create(
        model=DEFAULT_MODEL, prompt="Orrin is", n=2, seed=7, max_tokens=8
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [one.text for one in several.choices[2:]] == [one.text for one in alone.choices]
    best = client.completions.create(
        model=DEFAULT_MODEL, prompt="Mara is", best_of=4, n=2, seed=7, max_tokens=8, logprobs=0
    )
    means = [_mean(choice.logprobs) for choice in best.choices]
    assert means == sorted(means, reverse=True)


def _mean(logprobs: Any) -> float:
    return float(sum(logprobs.token_logprobs) / len(logprobs.token_logprobs))


async def test_log_probabilities(alice: NodeProcess) -> None:
    await against(alice, _log_probabilities)


def _log_probabilities(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=HELLO, temperature=0, logprobs=True, top_logprobs=3
    )
    found = chat.choices[0].logprobs
    assert found is not None
    assert found.content
    spelled = b"".join(bytes(one.bytes or ()) for one in found.content).decode()
    assert spelled.startswith(chat.choices[0].message.content or "?")
    for one in found.content:
        assert len(one.top_logprobs) == 3
        assert one.top_logprobs[0].logprob == pytest.approx(one.logprob)
    lenient = openai.OpenAI(base_url=client.base_url, api_key="unused", max_retries=0)
    with lenient:  # the first token of an echo has none, which strict validation refuses
        echo = lenient.completions.create(
            model=DEFAULT_MODEL, prompt="Mara is", echo=True, logprobs=2, max_tokens=0
        ).choices[0]
    assert echo.text == "Mara is"
    assert echo.logprobs is not None
    assert echo.logprobs.token_logprobs is not None
    assert echo.logprobs.token_logprobs[0] is None
    assert echo.finish_reason == "length"


async def test_what_is_sampled(alice: NodeProcess) -> None:
    await against(alice, _what_is_sampled)


def _what_is_sampled(client: openai.OpenAI) -> None:
    def text(**fields: Any) -> str:
        asked = {"model": DEFAULT_MODEL, "prompt": "Once upon", "max_tokens": 16, **fields}
        return str(client.completions.create(**asked).choices[0].text)

    assert text(seed=5) == text(seed=5)
    assert len({text(seed=seed) for seed in range(8)}) > 1
    greedy = text(temperature=0)
    assert greedy == text(temperature=0, seed=3)
    assert text(temperature=0, presence_penalty=2, frequency_penalty=2, top_p=0.5)
    assert text(temperature=0, stop=[greedy[8:12]]) == greedy[: greedy.index(greedy[8:12])]
    forced = text(temperature=0, max_tokens=3, logit_bias={"300": 100})
    assert forced == 3 * text(temperature=0, max_tokens=1, logit_bias={"300": 100})
    assert forced != greedy


async def test_schemas(alice: NodeProcess) -> None:
    await against(alice, _schemas)


def _schemas(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    for seed in range(5):
        answer = client.chat.completions.create(
            model=DEFAULT_MODEL, messages=HELLO, response_format=wanted, seed=seed
        )
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)
    impossible: Any = {
        "type": "json_schema",
        "json_schema": {"name": "none", "schema": {"type": "string", "pattern": "("}},
    }
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=DEFAULT_MODEL, messages=HELLO, response_format=impossible
        )
    assert refused.value.param == "response_format"


async def test_tools(alice: NodeProcess) -> None:
    await against(alice, _tools)


def _tools(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(
            model="caller", messages=fields.pop("messages", HELLO), **fields
        ).choices[0]  # fmt: skip

    choice = ask(tools=[WEATHER, TIME], tool_choice="required", parallel_tool_calls=False)
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name in ("weather", "time")
    assert len(call.id) == 9
    named: Any = {"type": "function", "function": {"name": "weather"}}
    chosen = ask(tools=[WEATHER, TIME], tool_choice=named, parallel_tool_calls=False)
    (call,) = chosen.message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert ask(tools=[WEATHER], tool_choice="none", max_tokens=20).message.tool_calls is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    assert ask(messages=[*HELLO, chosen.message, result], tools=[WEATHER], max_tokens=5)
    old = ask(functions=[WEATHER["function"]], function_call={"name": "weather"})
    assert old.finish_reason == "function_call"
    assert json.loads(old.message.function_call.arguments)["city"] in ("Oslo", "Rome")


async def test_streamed_tools(alice: NodeProcess) -> None:
    await against(alice, _streamed_tools)


def _streamed_tools(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "caller", "messages": HELLO, "tools": [WEATHER], "tool_choice": "required",
        "parallel_tool_calls": False, "seed": 3,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0].message.tool_calls
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert whole is not None
    assert streamed.finish_reason == "tool_calls"
    assert [one.function.arguments for one in streamed.message.tool_calls or ()] == [
        one.function.arguments for one in whole
    ]


async def test_media_that_a_model_does_not_take(alice: NodeProcess) -> None:
    await against(alice, _media)


def _media(client: openai.OpenAI) -> None:
    for url in (PIXEL, "https://example.org/a.png"):
        image: Any = [{"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": image}]
            )


async def test_effort_reaches_the_template(alice: NodeProcess) -> None:
    await against(alice, _effort)


def _effort(client: openai.OpenAI) -> None:
    body = {"model": "effort", "messages": HELLO, "reasoning_effort": "none",
            "chat_template_kwargs": {"tone": "dry"}}  # fmt: skip
    tokens: Any = client.post("/tokenize", body=body, cast_to=object)
    text: Any = client.post("/detokenize", body={**tokens, "model": "effort"}, cast_to=object)
    assert "hello none False dry" in text["content"]


async def test_tokens(alice: NodeProcess) -> None:
    await against(alice, _tokens)


def _tokens(client: openai.OpenAI) -> None:
    model = {"model": DEFAULT_MODEL}
    body: dict[str, Any] = {**model, "content": "Mara bakes.", "with_pieces": True}
    pieces: Any = client.post("/tokenize", body=body, cast_to=object)
    assert "".join(one["piece"] for one in pieces["tokens"]).strip() == "Mara bakes."
    ids = [one["id"] for one in pieces["tokens"]]
    text: Any = client.post("/detokenize", body={**model, "tokens": ids}, cast_to=object)
    assert text["content"].strip() == "Mara bakes."
    chat: Any = client.post("/tokenize", body={**model, "messages": HELLO}, cast_to=object)
    usage = client.chat.completions.create(
        model=DEFAULT_MODEL, messages=HELLO, max_tokens=1
    ).usage  # fmt: skip
    assert usage is not None
    assert usage.prompt_tokens == len(chat["tokens"])


async def test_embeddings(alice: NodeProcess) -> None:
    await against(alice, _embeddings)


def _embeddings(client: openai.OpenAI) -> None:
    texts = [f"text {place}" for place in range(100)]
    # By itself the SDK asks for base64, which its strict validation refuses of OpenAI too.
    with openai.OpenAI(base_url=client.base_url, api_key="unused", max_retries=0) as lenient:
        many = lenient.embeddings.create(model="mini", input=texts)
    assert [one.index for one in many.data] == list(range(100))
    (one,) = client.embeddings.create(model="mini", input="text 99", encoding_format="float").data
    assert many.data[99].embedding == pytest.approx(one.embedding, abs=1e-3)
    assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-3)
    (short,) = client.embeddings.create(
        model="mini", input="text 99", dimensions=8, encoding_format="float"
    ).data
    assert len(short.embedding) == 8
    assert math.hypot(*short.embedding) == pytest.approx(1, abs=1e-3)
    body = {"model": "mini", "input": "text 99", "encoding_format": "base64"}
    raw: Any = client.post("/embeddings", body=body, cast_to=object)
    packed = base64.b64decode(raw["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(one.embedding, abs=1e-6)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="mini", messages=HELLO)


async def test_rerank(alice: NodeProcess) -> None:
    await against(alice, _rerank)


def _rerank(client: openai.OpenAI) -> None:
    documents = ["the sea", "a loaf", "the tide"]
    body = {"model": "judge", "query": "water?", "documents": documents, "top_n": 2}
    found: Any = client.post("/rerank", body=body, cast_to=object)
    scores = [one["relevance_score"] for one in found["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all(documents[one["index"]] == one["document"]["text"] for one in found["results"])
    assert found["usage"]["total_tokens"] > 0
