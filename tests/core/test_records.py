"""Bounds stand in the types."""

import msgspec
import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, Delta, InferenceRequest, Sampling, TokenPrompt
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


def test_unknown_fields_are_ignored() -> None:
    assert decode(msgspec.msgpack.encode({"seed": 3, "mirostat": 2}), Sampling) == Sampling(seed=3)


def test_empty_prompts_are_refused() -> None:
    for kind, raw in ((ChatPrompt, {"type": "chat", "messages": []}),
                      (TokenPrompt, {"type": "tokens", "tokens": []})):  # fmt: skip
        with pytest.raises(RemoteError):
            decode(msgspec.msgpack.encode(raw), kind)


def test_delta_of_one_token_is_small() -> None:
    assert len(encode(Delta(tokens=(1234,), text=" word"))) < 32
