"""Foreign events become deltas."""

from typing import Any

import msgspec
import pytest
from meshnode_openai_endpoint.answer import Answer
from meshnode_openai_endpoint.messages import Chunk, read

from p2p_mesh.core.records import CallDelta, Delta, TokenLogprob, Usage
from p2p_mesh.errors import RemoteError


def chunk(*choices: dict[str, Any], **fields: Any) -> Chunk:
    return read(msgspec.json.encode({"choices": choices, **fields}), Chunk)


def taken(*choices: dict[str, Any], of: int = 1) -> list[Delta]:
    return list(Answer(of).take(chunk(*choices)))


def test_text_reasoning_and_refusal() -> None:
    assert taken({"delta": {"role": "assistant", "content": ""}}) == []
    assert taken({"delta": {"content": "a"}}) == [Delta(text="a")]
    assert taken({"delta": {"refusal": "no"}}) == [Delta(text="no")]
    assert taken({"text": "b"}) == [Delta(text="b")]
    for name in ("reasoning_content", "reasoning"):
        assert taken({"delta": {name: "hm"}}) == [Delta(reasoning="hm")]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", "stop"), ("length", "length"), ("tool_calls", "tool_calls"),
     ("content_filter", "stop"), ("eos", "stop")],
)  # fmt: skip
def test_every_end_has_its_name(reason: str, finish: str) -> None:
    assert [delta.finish for delta in taken({"finish_reason": reason})] == [finish]


def test_tool_calls_name_themselves_once() -> None:
    answer = Answer(1)
    calls = [
        {"index": 0, "function": {"name": "add", "arguments": ""}},
        {"index": 0, "function": {"name": "add", "arguments": '{"a"'}},
        {"function": {"arguments": ":1}"}},
    ]
    found = [delta.calls for call in calls
             for delta in answer.take(chunk({"delta": {"tool_calls": [call]}}))]  # fmt: skip
    assert found == [
        (CallDelta(name="add"),), (CallDelta(arguments='{"a"'),), (CallDelta(arguments=":1}"),)
    ]  # fmt: skip


def test_logprobs_of_a_chat() -> None:
    one = {"id": 7, "token": "x", "bytes": [120], "logprob": -0.5,
           "top_logprobs": [{"token": "é", "logprob": -9999.0}]}  # fmt: skip
    (delta,) = taken({"logprobs": {"content": [one]}})
    assert delta.logprobs == (
        TokenLogprob(token=7, piece=b"x", logprob=-0.5, top=((0, "é".encode(), -9999.0),)),
    )


def test_logprobs_of_a_completion() -> None:
    columns = {"tokens": ["a", "b"], "token_logprobs": [None, 0.1],
               "top_logprobs": [None, {"c": -2.0, "b": 0.1}]}  # fmt: skip
    (delta,) = taken({"text": "ab", "logprobs": columns})
    assert delta.logprobs == (
        TokenLogprob(token=0, piece=b"a"),
        TokenLogprob(token=0, piece=b"b", logprob=0.0, top=((0, b"b", 0.0), (0, b"c", -2.0))),
    )


def test_choices_are_told_apart() -> None:
    found = taken({"index": 1, "text": "b"}, {"index": 0, "text": "a"}, of=2)
    assert found == [Delta(choice=1, text="b"), Delta(text="a")]
    with pytest.raises(RemoteError, match="not asked for"):
        taken({"index": 1, "text": "b"})


def test_end_closes_what_is_open_and_tells_the_usage() -> None:
    answer = Answer(2)
    used = {"prompt_tokens": 3, "completion_tokens": 2,
            "prompt_tokens_details": {"cached_tokens": 1}}  # fmt: skip
    list(answer.take(chunk({"index": 1, "finish_reason": "length"})))
    assert not answer.is_finished
    list(answer.take(chunk({"index": 0, "text": "a"}, usage=used)))
    assert list(answer.end()) == [
        Delta(choice=0, finish="stop"),
        Delta(usage=Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1)),
    ]


@pytest.mark.parametrize("apart", [True, False])
def test_usage_of_each_choice_is_added_up(apart: bool) -> None:
    answer = Answer(2)
    for index, cached in ((1, 0), (0, 3)):
        used = {"prompt_tokens": 3, "completion_tokens": 2,
                "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
        end = {"index": index, "finish_reason": "stop"}
        chunks = (chunk(end), chunk(usage=used)) if apart else (chunk(end, usage=used),)
        for one in chunks:
            list(answer.take(one))
    assert list(answer.end()) == [Delta(usage=Usage(prompt_tokens=3, completion_tokens=4))]


def test_usage_that_is_told_all_the_time_is_not_added_up() -> None:
    answer = Answer(1)
    for number in (1, 2, 3):
        used = {"prompt_tokens": 3, "completion_tokens": number}
        end = {"finish_reason": "stop"} if number == 3 else {}
        list(answer.take(chunk({"text": "a", **end}, usage=used)))
    assert list(answer.end()) == [Delta(usage=Usage(prompt_tokens=3, completion_tokens=3))]


def test_usage_that_is_not_told_is_zero() -> None:
    answer = Answer(1)
    list(answer.take(chunk({"text": "a", "finish_reason": "stop"})))
    assert answer.is_finished
    assert list(answer.end()) == [Delta(usage=Usage(prompt_tokens=0, completion_tokens=0))]


def test_answer_of_nothing_is_the_servers_fault() -> None:
    with pytest.raises(RemoteError, match="before it began"):
        list(Answer(1).end())
