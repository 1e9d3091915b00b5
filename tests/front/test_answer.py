from typing import Any

import pytest

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, Delta, Finish, InferenceRequest, Usage
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import Ends, call_id, head, usage_body
from p2p_mesh.front.openai import Kind, Question

ONE = Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)
TWO = Usage(
    prompt_tokens=4, completion_tokens=9, reasoning_tokens=5, drafted_tokens=6, accepted_tokens=4
)


def question(kind: Kind = "chat", *, prompts: int = 1, choices: int = 1, **more: Any) -> Question:
    request = InferenceRequest(
        id=RequestId("chatcmpl-1"),
        model=ModelId("tiny"),
        prompt=ChatPrompt(messages=({},)),
        choices=choices,
        asked_at=1_700_000_000,
    )
    return Question(kind, (request,) * prompts, **more)


def test_head() -> None:
    assert head(question(stream=True)) == {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "tiny",
    }


def test_ids_of_calls_are_nine_letters_and_digits_and_differ() -> None:
    ids = {call_id(RequestId("r"), choice, index) for choice in range(20) for index in range(20)}
    assert len(ids) == 400
    assert all(len(one) == 9 and one.isascii() and one.isalnum() for one in ids)
    assert call_id(RequestId("r"), 0, 0) == call_id(RequestId("r"), 0, 0)
    assert call_id(RequestId("s"), 0, 0) not in ids


def test_choices_of_the_first_prompt_come_first() -> None:
    ends = Ends(question(prompts=2, choices=3))
    assert ends.take(Delta(choice=2), 0) == 2
    assert ends.take(Delta(choice=0), 1) == 3


def test_every_end_must_come() -> None:
    ends = Ends(question(prompts=2, choices=2))
    for prompt in (0, 1):
        for choice in (0, 1):
            with pytest.raises(RemoteError, match="broke off"):
                ends.check()
            ends.take(Delta(choice=choice, finish="stop"), prompt)
        with pytest.raises(RemoteError, match="broke off"):
            ends.check()
        ends.take(Delta(usage=ONE), prompt)
    ends.check()
    assert ends.reasons == dict.fromkeys(range(4), "stop")
    assert ends.usage()["total_tokens"] == 10


@pytest.mark.parametrize("late", [Delta(text="x"), Delta(finish="stop")])
def test_nothing_comes_after_an_end(late: Delta) -> None:
    ends = Ends(question())
    ends.take(Delta(finish="stop"), 0)
    ends.take(Delta(tokens=(1,)), 0)
    with pytest.raises(RemoteError, match="after its end"):
        ends.take(late, 0)


def test_choice_that_was_not_asked_for_is_an_error() -> None:
    with pytest.raises(RemoteError, match="not asked for"):
        Ends(question(choices=2)).take(Delta(choice=2), 0)


@pytest.mark.parametrize(
    ("asked", "finish", "reason"),
    [
        (question(), "length", "length"),
        (question(), "tool_calls", "tool_calls"),
        (question(is_legacy=True), "tool_calls", "function_call"),
        (question("text"), "tool_calls", "stop"),
    ],
)
def test_reasons(asked: Question, finish: Finish, reason: str) -> None:
    ends = Ends(asked)
    ends.take(Delta(finish=finish), 0)
    assert ends.reasons == {0: reason}


def test_usage_of_several_prompts() -> None:
    assert usage_body((ONE, TWO)) == {
        "prompt_tokens": 7,
        "completion_tokens": 11,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {
            "reasoning_tokens": 5,
            "accepted_prediction_tokens": 4,
            "rejected_prediction_tokens": 2,
            "audio_tokens": 0,
        },
    }
