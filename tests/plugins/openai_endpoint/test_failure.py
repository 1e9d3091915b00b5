"""What a refusal means, and what a user reads of it."""

from typing import Any

import msgspec
import pytest
from meshnode_openai_endpoint.failure import blaming, failure, streamed

from p2p_mesh.errors import (
    ContextExceeded,
    MeshError,
    Overloaded,
    RequestError,
    Unavailable,
)
from p2p_mesh.settings import Endpoint

ENDPOINT = Endpoint("http://foreign", "sk-secret", "MESHNODE_ENDPOINT_KEY_2")


def failed(status: int, body: Any, endpoint: Endpoint = ENDPOINT, **headers: str) -> MeshError:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return failure(status, given, raw, endpoint)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no such field", "param": "top_k", "type": "x", "code": None}},
        {"error": "no such field"},
        {"message": "no such field", "object": "error"},
        {"detail": "no such field"},
    ],
)
def test_request_that_is_wrong_is_said_in_the_servers_words(body: Any) -> None:
    error = failed(400, body)
    assert type(error) is RequestError
    assert str(error) == "no such field"


def test_param_is_passed_on() -> None:
    assert failed(400, {"error": {"message": "x", "param": "n"}}).param == "n"
    assert failed(422, {"error": {"message": "x", "param": 5}}).param is None
    assert failed(400, {"error": {"param": "n"}}).param == "n"


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too long", "code": "context_length_exceeded"},
        {"message": "too long", "code": 400, "type": "exceed_context_size_error"},
        {"message": "This model's maximum context length is 8 tokens", "code": 400},
    ],
)
def test_prompt_that_is_too_long(error: dict[str, Any]) -> None:
    assert type(failed(400, {"error": error})) is ContextExceeded


@pytest.mark.parametrize(
    ("path", "param"),
    [("chat/completions", "messages"), ("completions", "prompt"), ("embeddings", "input"),
     ("/tokenize", "input_tokens")],
)  # fmt: skip
def test_prompt_that_is_too_long_is_named_as_the_client_sent_it(path: str, param: str) -> None:
    error = {"message": "x", "code": "context_length_exceeded", "param": "input_tokens"}
    assert blaming(failed(400, {"error": error}), path).param == param
    assert blaming(failed(400, {"error": {"message": "x", "param": "n"}}), path).param == "n"


def test_key_is_named_and_never_shown() -> None:
    error = failed(401, {"error": {"message": "Incorrect API key: sk-secret"}})
    assert str(error) == (
        "the server at http://foreign wants another key than that of MESHNODE_ENDPOINT_KEY_2 "
        "(status 401)"
    )
    missing = failed(403, b"", Endpoint("http://foreign"))
    assert "put it into MESHNODE_ENDPOINT_KEY" in str(missing)
    assert "sk-secret" not in str(failed(400, {"error": "not sk-secret"}))


@pytest.mark.parametrize("key", ["Bearer sk-secret12", 'Token key="sk-secret12"', "sk-secret12"])
def test_no_part_of_a_key_is_shown(key: str) -> None:
    endpoint = Endpoint("http://foreign", key)
    said = {"message": f"{'x' * 990}sk-secret12 is wrong", "param": f"{key}!"}
    error = failed(400, {"error": said}, endpoint)
    assert str(error) == f"{'x' * 990}*** is wro"
    assert error.param is not None
    assert "secret" not in str(error) + error.param


def test_short_words_of_a_key_are_left_to_be_read() -> None:
    error = failed(400, {"error": "Bearer is missing"}, Endpoint("http://foreign", "Bearer abc"))
    assert str(error) == "Bearer is missing"


def test_busy_server_says_when() -> None:
    error = failed(429, {}, retry_after="7")
    assert (type(error), error.retry_after) == (Overloaded, 7.0)
    for header in ("soon", "-5", "nan"):
        assert failed(429, {}, retry_after=header).retry_after == 1.0


@pytest.mark.parametrize(("status", "body"), [(500, b"<html>"), (503, {"error": "Loading model"}),
                                              (302, b""), (599, b"\xff")])  # fmt: skip
def test_server_that_fails_may_be_tried_again(status: int, body: Any) -> None:
    assert type(failed(status, body)) is Unavailable


def test_model_that_is_gone_is_not_the_clients_fault() -> None:
    gone = {"error": {"message": "model 'm' not found", "type": "not_found_error"}}
    assert type(failed(404, gone)) is Unavailable
    assert type(failed(404, {"error": {"message": "File Not Found"}})) is RequestError
    assert type(failed(501, {"error": {"message": "Start it with --embeddings"}})) is RequestError


def test_words_are_bounded() -> None:
    assert len(str(failed(400, {"error": "x" * 100_000}))) == 1_000
    assert type(failed(400, b"[" * 100_000)) is RequestError


def test_error_within_a_stream() -> None:
    assert type(streamed({"message": "x", "code": 500}, ENDPOINT)) is Unavailable
    assert type(streamed("it broke", ENDPOINT)) is Unavailable
    wrong = streamed({"message": "bad", "type": "invalid_request_error"}, ENDPOINT)
    assert (type(wrong), str(wrong)) == (RequestError, "bad")
    assert type(streamed({"type": "exceed_context_size_error"}, ENDPOINT)) is ContextExceeded
