import json
from typing import Any

import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, Delta, InferenceRequest, Usage
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import Answer
from p2p_mesh.front.openai import Kind, Question

END = Delta(
    tokens=(9,),
    finish="length",
    usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
)
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
}


def answer(kind: Kind = "chat", *, stream: bool = True, include_usage: bool = False) -> Answer:
    request = InferenceRequest(
        id=RequestId("chatcmpl-1"),
        model=ModelId("tiny"),
        prompt=ChatPrompt(messages=({},)),
        asked_at=1_700_000_000,
    )
    return Answer(Question(kind, request, stream, include_usage))


def events(written: bytes) -> list[dict[str, Any]]:
    assert written.endswith(b"\n\n")
    return [json.loads(one.removeprefix(b"data: ")) for one in written[:-2].split(b"\n\n")]


def test_whole_chat() -> None:
    whole = answer(stream=False)
    assert whole.take(Delta(text="hi")) == "hi"
    assert whole.take(END) == ""
    assert whole.whole("hi") == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "logprobs": None,
                "message": {"role": "assistant", "content": "hi", "refusal": None},
            }
        ],
        "usage": USAGE,
    }


def test_whole_text() -> None:
    whole = answer("text", stream=False)
    whole.take(END)
    found = whole.whole("hi")
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "finish_reason": "length", "logprobs": None, "text": "hi"}
    ]


def test_chat_in_chunks() -> None:
    growing = answer()
    (opening,) = events(growing.opening())
    assert opening["object"] == "chat.completion.chunk"
    assert opening["choices"][0]["delta"]["role"] == "assistant"
    assert "usage" not in opening
    (grown,) = events(growing.grown(Delta(text="hi")))
    assert grown["choices"] == [
        {"index": 0, "delta": {"content": "hi"}, "finish_reason": None, "logprobs": None}
    ]
    assert growing.grown(END) == b""
    (closing,) = events(growing.closing())
    assert closing["choices"] == [
        {"index": 0, "delta": {}, "finish_reason": "length", "logprobs": None}
    ]


def test_text_in_chunks() -> None:
    growing = answer("text")
    assert growing.opening() == b""
    (grown,) = events(growing.grown(Delta(text="hi")))
    assert grown["object"] == "text_completion"
    assert grown["choices"][0]["text"] == "hi"
    growing.take(END)
    assert events(growing.closing())[0]["choices"][0]["finish_reason"] == "length"


def test_usage_comes_last_and_is_null_before() -> None:
    growing = answer(include_usage=True)
    assert events(growing.opening())[0]["usage"] is None
    growing.take(END)
    closing, usage = events(growing.closing())
    assert closing["usage"] is None
    assert usage["choices"] == []
    assert usage["usage"] == USAGE


def test_withheld_text_is_no_chunk() -> None:
    assert answer().grown(Delta(tokens=(1,))) == b""


def test_line_break_stays_within_its_event() -> None:
    (grown,) = events(answer().grown(Delta(text="a\n\nb\r")))
    assert grown["choices"][0]["delta"]["content"] == "a\n\nb\r"


@pytest.mark.parametrize("last", [Delta(), Delta(finish="stop"), Delta(usage=END.usage)])
def test_answer_without_its_end_is_an_error(last: Delta) -> None:
    broken = answer()
    broken.take(last)
    with pytest.raises(RemoteError, match="broke off"):
        broken.closing()
    with pytest.raises(RemoteError, match="broke off"):
        broken.whole("")
