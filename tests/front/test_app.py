import random
from typing import Any

import httpx
import httpx2
import openai
import pytest

from p2p_mesh.core.names import ModelId
from p2p_mesh.front.app import create_app
from p2p_mesh.http.guard import Policy
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.testing.inference import ScriptedInference, Step, deltas

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
HELLO = deltas("Hel", "lo")


def front(
    inference: ScriptedInference,
    *,
    policy: Policy | None = None,
    entries: list[Entry] | None = None,
) -> Any:
    return create_app(
        inference,
        policy=policy or Policy(),
        clock=lambda: 1_700_000_000.9,
        random=random.Random(1),
        journal=Journal((entries if entries is not None else []).append),
    )


def client(*steps: Step, **options: Any) -> httpx.AsyncClient:
    app = front(ScriptedInference(*steps), **options)
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


async def test_models_are_listed() -> None:
    for path in ("/v1/models", "/v1/models/", "/models"):
        response = await client().get(path)
        assert response.json()["data"] == [
            {
                "id": "tiny",
                "object": "model",
                "created": 1_700_000_000,
                "owned_by": "meshnode",
                "meshnode": {
                    "state": "ready",
                    "context": 4096,
                    "digest": None,
                    "capabilities": ["generate"],
                    "nodes": 1,
                    "shards": 0,
                    "routing_mass": None,
                },
            }
        ]
        assert (await client().head(path)).status_code == 200


@pytest.mark.parametrize(
    ("model", "path"),
    [("tiny", "tiny"), ("tiny", "tiny/"), ("a/b@1 c", "a%2Fb%401%20c"), ("a/b", "a/b")],
)
async def test_model_is_found_by_its_id(model: str, path: str) -> None:
    app = front(ScriptedInference(model=model))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as http:
        response = await http.get(f"/v1/models/{path}")
    assert response.json()["id"] == model


async def test_unknown_model_is_404_with_the_names_that_are_there() -> None:
    for response in (
        await client().get("/v1/models/huge"),
        await client().post("/v1/chat/completions", json={**CHAT, "model": "huge"}),
        await client().post("/v1/chat/completions", json={**CHAT, "model": "huge", "stream": True}),
    ):
        assert response.status_code == 404
        error = response.json()["error"]
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        assert "tiny" in error["message"]


async def test_health() -> None:
    response = await client(policy=Policy(api_key="key")).get("/health")
    assert response.json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models"])
async def test_wrong_method_says_what_is_allowed(path: str) -> None:
    response = await client().delete(path)
    assert response.status_code == 405
    allowed = {"GET", "HEAD"} if path == "/v1/models" else {"POST"}
    assert set(response.headers["allow"].split(", ")) == allowed
    assert response.json()["error"]["code"] == "method_not_allowed"


async def test_unknown_path_is_404() -> None:
    response = await client().post("/v1/images", json={})
    assert response.status_code == 404
    assert "POST /v1/images" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/responses"), ("POST", "/v1/responses/"), ("GET", "/v1/responses/resp_1"),
     ("POST", "/v1/responses/resp_1/cancel"), ("DELETE", "/v1/responses/resp_1")],
)  # fmt: skip
async def test_responses_are_404_with_what_to_call_instead(method: str, path: str) -> None:
    response = await client().request(method, path, json={"model": "tiny", "input": "hello"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "not_found"
    assert "/v1/responses is not served" in error["message"]
    assert "/v1/chat/completions" in error["message"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_wrong_method_without_a_body_is_405(method: str) -> None:
    response = await client().request(method, "/v1/models")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_key_is_asked_for_everywhere_else() -> None:
    for path in ("/v1/models", "/v1/nothing"):
        response = await client(policy=Policy(api_key="key")).get(path)
        assert response.status_code == 401


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"", None),
        (b'{"model": "tiny", "model": "tiny"}', "model"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', None),
        (b'{"model": "tiny", "prompt": "x", "\\udfff": 1}', None),
        (b'{"messages": []}', "model"),
        (b'{"model": "tiny"}', "messages"),
    ],
)
async def test_wrong_body_is_400(body: bytes, param: str | None) -> None:
    response = await client().post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_form_is_415() -> None:
    response = await client().post("/v1/chat/completions", data={"model": "tiny"})
    assert response.status_code == 415


async def test_strict_sdk_reads_models() -> None:
    async with sdk() as api:
        assert [model.id async for model in api.models.list()] == ["tiny"]
        assert (await api.models.retrieve("tiny")).owned_by == "meshnode"
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("huge")


async def test_sdk_sends_the_key() -> None:
    policy = Policy(api_key="key")
    async with sdk(*HELLO, policy=policy, api_key="key") as api:
        await api.chat.completions.create(**CHAT)
    async with sdk(*HELLO, policy=policy, api_key="other") as api:
        with pytest.raises(openai.AuthenticationError):
            await api.chat.completions.create(**CHAT)


def test_card_has_sensible_defaults() -> None:
    (card,) = ScriptedInference(model="m").models()
    assert card.id == ModelId("m")
    assert card.state == "ready"
