"""What we answer to whatever OpenAI's schema allows, and to what it does not, has the form that the
schema says. `openai.json` is that schema, cut down to the operations that are served.
"""

import json
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from p2p_mesh.core.records import (
    CallDelta,
    ChatPrompt,
    Delta,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    TokenLogprob,
    Usage,
    Vectors,
)
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import Policy
from p2p_mesh.journal import Journal
from p2p_mesh.testing.inference import ScriptedInference

DOCUMENT = json.loads((Path(__file__).parent / "openai.json").read_text())
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
BOUNDED = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
JSON = (dict, list, str, int, float, type(None))
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
STREAMS = (("/v1/chat/completions", True), ("/v1/completions", True))


class Obliging(ScriptedInference):
    """Gives every request what it asks for."""

    @asynccontextmanager
    async def answer(
        self, request: InferenceRequest, client: str = "", conversation: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        script = ScriptedInference(*_steps(request))
        async with script.answer(request) as deltas:
            yield deltas


def _steps(request: InferenceRequest) -> Iterator[Delta]:
    top = ((1, b"a", -0.5), (2, b"\xc3", -1.0))[: request.logprobs]
    log = TokenLogprob(token=1, piece=b"a", logprob=-0.5, top=top)
    logs = () if request.logprobs is None else (log,)
    prompt = request.prompt
    calls = isinstance(prompt, ChatPrompt) and prompt.tool_choice == "required"
    for choice in range(request.choices):
        if request.echo:
            yield Delta(choice=choice, text="x", logprobs=(TokenLogprob(token=1, piece=b"x"),))
        yield Delta(choice=choice, tokens=(1,), reasoning="well", logprobs=logs)
        yield Delta(choice=choice, tokens=(1,), text="a", logprobs=logs)
        if calls and isinstance(prompt, ChatPrompt):
            call = CallDelta(name=prompt.tools[0].name, arguments="{}")
            yield Delta(choice=choice, calls=(call,), finish="tool_calls")
        else:
            yield Delta(choice=choice, finish="length")
    yield Delta(usage=Usage(prompt_tokens=1, completion_tokens=2 * request.choices))


def reply(query: Query) -> Reply:
    assert isinstance(query, EmbedQuery)
    vector = struct.pack("<16f", *[0.25] * 16)
    return Vectors(vectors=(vector,) * len(query.inputs), prompt_tokens=1)


async def send(case: Any) -> httpx.Response:
    app = create_app(
        Obliging(replies=reply), policy=Policy(), clock=lambda: 1_700_000_000,
        random=random.Random(1), journal=Journal(),
    )  # fmt: skip
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        if case.method == "GET":
            return await client.get(case.formatted_path)
        return await client.post(case.formatted_path, json=case.body)


def validate(case: Any, response: httpx.Response) -> None:
    """That the response is one of those that the schema has for its operation."""
    assert response.status_code < 500, response.text
    assert str(response.status_code) in case.operation.definition.raw["responses"]
    if response.headers["content-type"].startswith("text/event-stream"):
        _validate_events(case, response.text)
    else:
        case.operation.validate_response(response)


def _validate_events(case: Any, text: str) -> None:
    *chunks, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    content = case.operation.definition.raw["responses"]["200"]["content"]
    schema = {**content["text/event-stream"]["x-events"], "components": DOCUMENT["components"]}
    for chunk in chunks:
        jsonschema.Draft202012Validator(schema).validate(json.loads(chunk.removeprefix("data: ")))


@pytest.mark.parametrize(("path", "stream"), [*((path, None) for path in POSTS), *STREAMS])
def test_whatever_the_schema_allows(path: str, stream: bool | None) -> None:
    answered = []

    @BOUNDED
    @given(SCHEMA[path]["POST"].as_strategy())
    def each(case: Any) -> None:
        case.body |= {"model": "tiny"} if stream is None else {"model": "tiny", "stream": stream}
        response = trio.run(send, case)
        validate(case, response)
        answered.append(response.status_code)

    each()
    assert answered.count(200) >= 5  # not only refusals were seen


@pytest.mark.parametrize("path", POSTS)
def test_whatever_the_schema_does_not_allow(path: str) -> None:
    negative = SCHEMA[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @BOUNDED
    @given(negative.filter(lambda case: isinstance(case.body, JSON)))
    def each(case: Any) -> None:
        validate(case, trio.run(send, case))

    each()


def test_list_of_models() -> None:
    case = SCHEMA["/v1/models"]["GET"].Case()
    validate(case, trio.run(send, case))


@pytest.mark.parametrize(("model", "status"), [("tiny", 200), ("huge", 404)])
def test_model(model: str, status: int) -> None:
    case = SCHEMA["/v1/models/{model}"]["GET"].Case(path_parameters={"model": model})
    response = trio.run(send, case)
    validate(case, response)
    assert response.status_code == status


@BOUNDED
@given(st.data())
def test_any_name_of_a_model(data: st.DataObject) -> None:
    case = data.draw(SCHEMA["/v1/models/{model}"]["GET"].as_strategy())
    validate(case, trio.run(send, case))
