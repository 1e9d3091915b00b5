"""Bounds stand in the types."""

import msgspec
import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    EmbedQuery,
    InferenceRequest,
    RerankQuery,
    Resume,
    Sampling,
    TokenLogprob,
    TokenPrompt,
    Tool,
)
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import RemoteError


def request() -> InferenceRequest:
    return InferenceRequest(
        id=RequestId("r"),
        model=ModelId("m"),
        prompt=ChatPrompt(messages=({"role": "user", "content": "hello"},)),
        sampling=Sampling(seed=7),
    )


def test_request_survives_the_wire() -> None:
    assert decode(encode(request()), InferenceRequest) == request()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("min_p", 1.5),
        ("top_k", -1),
        ("repeat_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("seed", -1),
    ],
)
def test_sampling_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(RemoteError):
        decode(msgspec.msgpack.encode({field: value}), Sampling)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (Sampling, {"logit_bias": [[1, 101.0]]}),
        (Sampling, {"logit_bias": [[-1, 0.0]]}),
        (Sampling, {"logit_bias": [[1, 0.0]] * 1025}),
        (Tool, {"name": ""}),
        (ChatPrompt, {"type": "chat", "messages": [{}], "tools": [{"name": "f"}] * 129}),
        (ChatPrompt, {"type": "chat", "messages": [{}], "tool_choice": "f"}),
        (Resume, {"choice": 128}),
        (Resume, {"text": -1}),
        (TokenLogprob, {"token": 1, "logprob": 0.1}),
        (TokenLogprob, {"token": 1, "logprob": float("nan")}),
        (TokenLogprob, {"token": 1, "top": [[1, b"", -1.0]] * 21}),
        (Delta, {"choice": 128}),
        (Delta, {"finish": "content_filter"}),
        (EmbedQuery, {"type": "embed", "model": "m", "inputs": []}),
        (EmbedQuery, {"type": "embed", "model": "m", "inputs": ["x"] * 257}),
        (RerankQuery, {"type": "rerank", "model": "m", "query": "x", "documents": []}),
    ],
)
def test_record_out_of_its_bounds_is_refused(kind: type, raw: dict[str, object]) -> None:
    with pytest.raises(RemoteError):
        decode(msgspec.msgpack.encode(raw), kind)


@pytest.mark.parametrize(
    "more",
    [{"choices": 0}, {"choices": 129}, {"max_tokens": -1}, {"logprobs": 21}, {"stop": [""]}],
)
def test_request_out_of_its_bounds_is_refused(more: dict[str, object]) -> None:
    raw = msgspec.to_builtins(request()) | more
    with pytest.raises(RemoteError):
        decode(msgspec.msgpack.encode(raw), InferenceRequest)


def test_unknown_fields_are_ignored() -> None:
    assert decode(msgspec.msgpack.encode({"seed": 3, "mirostat": 2}), Sampling) == Sampling(seed=3)


def test_empty_prompts_are_refused() -> None:
    for kind, raw in ((ChatPrompt, {"type": "chat", "messages": []}),
                      (TokenPrompt, {"type": "tokens", "tokens": []})):  # fmt: skip
        with pytest.raises(RemoteError):
            decode(msgspec.msgpack.encode(raw), kind)


def test_delta_of_one_token_is_small() -> None:
    assert len(encode(Delta(tokens=(1234,), text=" word"))) < 32
