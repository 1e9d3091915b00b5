import json
import random
import struct
from typing import Any

import httpx
import pytest

from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    EmbedQuery,
    Query,
    Reply,
    RerankQuery,
    Scores,
    Text,
    TokenizeQuery,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import ContextExceeded, MeshError, Unavailable
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import Policy
from p2p_mesh.journal import Journal
from p2p_mesh.testing.inference import ScriptedInference

EMBED = {"model": "tiny", "input": "hello"}
KINDS = (EmbedQuery, RerankQuery, TokenizeQuery, DetokenizeQuery)
RERANK = {"model": "tiny", "query": "sea?", "documents": ["a", "b"]}


def reply(query: Query) -> Reply:
    match query:
        case EmbedQuery():
            vector = struct.pack("<2f", 0, 1)
            return Vectors(vectors=(vector,) * len(query.inputs), prompt_tokens=3)
        case RerankQuery():
            scores = tuple(map(float, range(len(query.documents))))
            return Scores(scores=scores, prompt_tokens=3)
        case TokenizeQuery():
            return Tokens(tokens=(1, 2), pieces=(b"a", b"b"))
    return Text(text="ab")


def client(inference: ScriptedInference) -> httpx.AsyncClient:
    app = create_app(
        inference, policy=Policy(), clock=lambda: 1_700_000_000.9, random=random.Random(1),
        journal=Journal(),
    )  # fmt: skip
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def post(path: str, body: dict[str, Any], inference: ScriptedInference | None = None) -> Any:
    response = await client(inference or ScriptedInference(replies=reply)).post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
async def test_embeddings(path: str) -> None:
    inference = ScriptedInference(replies=reply)
    found = await post(path, {**EMBED, "input": ["x"] * 65}, inference)
    assert [item["embedding"] for item in found["data"]] == [[0, 1]] * 65
    assert found["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert [len(query.inputs) for query in inference.queries if isinstance(query, EmbedQuery)] == [
        64, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/reranking", "/reranking/"])
async def test_rerank(path: str) -> None:
    found = await post(path, {**RERANK, "documents": ["x"] * 65, "return_documents": False})
    assert found["results"][0] == {"index": 63, "relevance_score": 63}
    assert len(found["results"]) == 65


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize", "/v1/tokenize/"])
async def test_tokenize(path: str) -> None:
    assert await post(path, {"content": "ab"}) == {"tokens": [1, 2]}
    pieces = [{"id": 1, "piece": "a"}, {"id": 2, "piece": "b"}]
    assert await post(path, {"content": "ab", "with_pieces": True}) == {"tokens": pieces}


async def test_tokens_of_a_chat_are_counted_at_the_time_of_asking() -> None:
    inference = ScriptedInference(replies=reply)
    await post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}, inference)
    (query,) = inference.queries
    assert isinstance(query, TokenizeQuery)
    assert isinstance(query.prompt, ChatPrompt)
    assert (query.model, query.asked_at) == ("tiny", 1_700_000_000)


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_detokenize(path: str) -> None:
    inference = ScriptedInference(replies=reply)
    assert await post(path, {"tokens": [1, 2]}, inference) == {"content": "ab"}
    assert inference.queries == [DetokenizeQuery(model="tiny", tokens=(1, 2))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", EMBED),
        ("/v1/rerank", RERANK),
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
@pytest.mark.parametrize(
    ("error", "status"),
    [(ContextExceeded("9 of 8", param="input"), 400), (Unavailable("nobody"), 503)],
)
async def test_errors_have_openais_shape(
    path: str, body: dict[str, Any], error: MeshError, status: int
) -> None:
    response = await client(ScriptedInference(replies=dict.fromkeys(KINDS, error))).post(
        path, json=body
    )
    assert response.status_code == status
    found = json.loads(response.text)["error"]
    assert (found["code"], found["param"], found["message"]) == (
        error.code, error.param, str(error),
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/tokenize", "/v1/detokenize"])
async def test_wrong_field_is_named(path: str) -> None:
    response = await client(ScriptedInference()).post(path, json={"model": 5})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "model"
