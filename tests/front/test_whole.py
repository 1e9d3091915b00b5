from typing import Any

import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    CallDelta,
    ChatPrompt,
    Delta,
    InferenceRequest,
    TextPrompt,
    TokenLogprob,
    Usage,
)
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import call_id
from p2p_mesh.front.openai import Question
from p2p_mesh.front.whole import Whole

USAGE = Usage(prompt_tokens=3, completion_tokens=2)
END = Delta(finish="stop", usage=USAGE)
CALLS = (
    Delta(calls=(CallDelta(index=0, name="f", arguments="{"), CallDelta(index=1, name="g"))),
    Delta(calls=(CallDelta(index=1, arguments="{}"), CallDelta(index=0, arguments="}"))),
    Delta(finish="tool_calls", usage=USAGE),
)


def ask(prompt: Any, **fields: Any) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("tiny"), prompt=prompt, **fields)


CHAT = ask(ChatPrompt(messages=({},)))


def body(question: Question, *deltas: Delta | tuple[int, Delta]) -> dict[str, Any]:
    whole = Whole(question)
    for delta in deltas:
        if isinstance(delta, Delta):
            whole.take(delta)
        else:
            whole.take(delta[1], delta[0])
    return whole.body()


def log(piece: bytes, value: float) -> TokenLogprob:
    return TokenLogprob(token=1, piece=piece, logprob=value, top=((1, piece, value),))


def test_chat() -> None:
    found = body(Question("chat", (CHAT,)), Delta(text="h"), Delta(text="i"), END)
    assert found["object"] == "chat.completion"
    assert found["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hi", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert found["usage"]["total_tokens"] == 5


def test_completion() -> None:
    found = body(Question("text", (ask(TextPrompt(text="x")),)), Delta(text="hi"), END)
    assert found["object"] == "text_completion"
    assert found["choices"] == [
        {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}
    ]


def test_reasoning_stands_apart() -> None:
    deltas = (Delta(reasoning="w"), Delta(reasoning="ell", text="hi"), END)
    (choice,) = body(Question("chat", (CHAT,)), *deltas)["choices"]
    assert choice["message"]["reasoning_content"] == "well"
    assert choice["message"]["content"] == "hi"


def test_calls() -> None:
    (choice,) = body(Question("chat", (CHAT,)), *CALLS)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": call_id(RequestId("r"), 0, index), "type": "function",
         "function": {"name": name, "arguments": "{}"}}
        for index, name in ((0, "f"), (1, "g"))
    ]  # fmt: skip


def test_call_of_old() -> None:
    (choice,) = body(Question("chat", (CHAT,), is_legacy=True), *CALLS)["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]


def test_call_without_a_name_is_an_error() -> None:
    with pytest.raises(RemoteError, match="without a name"):
        body(Question("chat", (CHAT,)), Delta(calls=(CallDelta(arguments="{"),)))


def test_choices_of_several_prompts() -> None:
    asked = ask(TextPrompt(text="x"), choices=2)
    deltas = [
        (prompt, Delta(choice=choice, text=f"{prompt}{choice}", finish="stop", usage=USAGE))
        for prompt in (1, 0)
        for choice in (1, 0)
    ]
    found = body(Question("text", (asked, asked), choices=2), *deltas)
    assert [choice["text"] for choice in found["choices"]] == ["00", "01", "10", "11"]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"]["prompt_tokens"] == 6


def test_best_choices_are_kept_best_first() -> None:
    asked = ask(TextPrompt(text="x"), choices=3, logprobs=0)
    deltas = [
        Delta(choice=choice, text=str(choice), tokens=(1,), logprobs=(log(b"x", value),),
              finish="stop", usage=USAGE)
        for choice, value in enumerate((-2.0, -0.5, -1.0))
    ]  # fmt: skip
    found = body(Question("text", (asked,), choices=2), *deltas)["choices"]
    assert [(one["index"], one["text"], one["logprobs"]) for one in found] == [
        (0, "1", None),
        (1, "2", None),
    ]


def test_best_is_the_mean_of_what_was_sampled() -> None:
    asked = ask(TextPrompt(text="x"), choices=2, logprobs=0, echo=True)
    prompt = (TokenLogprob(token=1, piece=b"x"), log(b"x", -9.0))
    many = Delta(tokens=(1, 1), text="ab", logprobs=(*prompt, log(b"a", -1.0), log(b"b", -1.0)),
                 finish="stop")  # fmt: skip
    one = Delta(choice=1, tokens=(1,), text="c", logprobs=(*prompt, log(b"c", -1.5)),
                finish="stop", usage=USAGE)  # fmt: skip
    (best,) = body(Question("text", (asked,)), many, one)["choices"]
    assert best["text"] == "ab"


def test_logprobs_of_either_kind() -> None:
    deltas = (Delta(text="a", logprobs=(log(b"a", -1.0),)), END)
    (chat,) = body(Question("chat", (CHAT,), logprobs=0), *deltas)["choices"]
    assert chat["logprobs"]["content"][0]["logprob"] == -1.0
    assert chat["logprobs"]["content"][0]["top_logprobs"] == []
    (text,) = body(Question("text", (CHAT,), logprobs=1), *deltas)["choices"]
    assert text["logprobs"]["top_logprobs"] == [{"a": -1.0}]


@pytest.mark.parametrize("last", [Delta(), Delta(finish="stop"), Delta(usage=USAGE)])
def test_answer_without_its_end_is_an_error(last: Delta) -> None:
    with pytest.raises(RemoteError, match="broke off"):
        body(Question("chat", (CHAT,)), Delta(text="hi"), last)
