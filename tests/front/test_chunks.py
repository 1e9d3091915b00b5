import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    CallDelta,
    ChatPrompt,
    Delta,
    InferenceRequest,
    TokenLogprob,
    Usage,
)
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import call_id
from p2p_mesh.front.chunks import Chunks
from p2p_mesh.front.openai import Kind, Question
from p2p_mesh.front.whole import Whole

USAGE = Usage(prompt_tokens=3, completion_tokens=2)
END = Delta(finish="length", usage=USAGE)
ROLE = {"role": "assistant", "content": "", "refusal": None}


def question(kind: Kind = "chat", *, choices: int = 1, **more: Any) -> Question:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("tiny\0\N{SNOWMAN}"), choices=choices,
        prompt=ChatPrompt(messages=({},)), asked_at=1_700_000_000,
    )  # fmt: skip
    return Question(kind, (request,), stream=True, **{"choices": choices, **more})


def events(written: bytes) -> list[Any]:
    lines = written.decode().split("\n\n")
    assert lines.pop() == ""
    return [json.loads(one.removeprefix("data: ")) for one in lines]


def choices(written: bytes) -> list[Any]:
    return [chunk["choices"][0] for chunk in events(written)]


def grown(chunks: Chunks, *deltas: Delta) -> list[Any]:
    """What the deltas of the chunks' choices are."""
    return [one["delta"] for one in choices(b"".join(chunks.grown(delta) for delta in deltas))]


def test_chat_in_chunks() -> None:
    chunks = Chunks(question())
    first, hi = events(chunks.grown(Delta(text="hi")))
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == ROLE
    assert hi["choices"] == [
        {"index": 0, "delta": {"content": "hi"}, "logprobs": None, "finish_reason": None}
    ]
    assert "usage" not in hi
    (last,) = events(chunks.grown(END))
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    assert chunks.closing() == b""


def test_text_in_chunks() -> None:
    chunks = Chunks(question("text"))
    assert chunks.grown(Delta(tokens=(1,))) == b""
    found = choices(chunks.grown(Delta(text="hi")) + chunks.grown(END))
    assert [(one["text"], one["finish_reason"]) for one in found] == [("hi", None), ("", "length")]


def test_spliced_chunk_is_as_any_other() -> None:
    chunks = Chunks(question())
    first = events(chunks.grown(Delta(text='"\n\n\N{SNOWMAN}\0')))[1]
    (again,) = events(chunks.grown(Delta(text='"\n\n\N{SNOWMAN}\0', tokens=(5,))))
    assert again == first
    assert again["choices"][0]["delta"]["content"] == '"\n\n\N{SNOWMAN}\0'
    assert again["model"] == "tiny\0\N{SNOWMAN}"


def test_withheld_text_is_no_chunk() -> None:
    chunks = Chunks(question())
    assert grown(chunks, Delta(tokens=(1,))) == [ROLE]
    assert chunks.grown(Delta(tokens=(1,))) == b""


def test_usage_comes_last_and_is_null_before() -> None:
    chunks = Chunks(question(include_usage=True))
    written = b"".join(chunks.grown(one) for one in (Delta(text="a"), Delta(text="b"), END))
    assert [chunk["usage"] for chunk in events(written)] == [None] * 4
    (last,) = events(chunks.closing())
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5


def test_choices_come_and_end_as_they_do() -> None:
    chunks = Chunks(question(choices=2))
    found = choices(
        chunks.grown(Delta(choice=1, text="b"))
        + chunks.grown(Delta(choice=0, text="a", finish="stop"))
        + chunks.grown(Delta(choice=1, finish="length"))
        + chunks.grown(Delta(usage=USAGE))
    )
    assert [(one["index"], one["finish_reason"]) for one in found] == [
        (1, None), (1, None), (0, None), (0, None), (0, "stop"), (1, "length"),
    ]  # fmt: skip
    assert chunks.closing() == b""


def test_reasoning_comes_apart_from_text() -> None:
    assert grown(Chunks(question()), Delta(reasoning="well", text="hi")) == [
        ROLE,
        {"reasoning_content": "well"},
        {"content": "hi"},
    ]


def test_call_begins_with_its_name() -> None:
    begun = Delta(calls=(CallDelta(index=1, name="f", arguments="{"),))
    more = Delta(calls=(CallDelta(index=1, arguments="}"),))
    name = call_id(RequestId("r"), 0, 1)
    function = {"name": "f", "arguments": ""}
    assert grown(Chunks(question()), begun, more) == [
        ROLE,
        {"tool_calls": [{"index": 1, "id": name, "type": "function", "function": function}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
    ]


def test_call_of_old() -> None:
    calls = Delta(calls=(CallDelta(name="f", arguments="{}"), CallDelta(index=1, name="g")))
    assert grown(Chunks(question(is_legacy=True)), calls) == [
        ROLE,
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
    ]


def test_call_without_a_name_is_an_error() -> None:
    with pytest.raises(RemoteError, match="without a name"):
        Chunks(question()).grown(Delta(calls=(CallDelta(arguments="{"),)))


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_logprobs_of_withheld_text_come_with_no_text(kind: Kind) -> None:
    log = TokenLogprob(token=1, piece=b"\xc3", logprob=-1.0)
    found = choices(Chunks(question(kind, logprobs=0)).grown(Delta(logprobs=(log,))))[-1]
    assert (found["delta"]["content"] if kind == "chat" else found["text"]) == ""
    assert len(found["logprobs"]["content" if kind == "chat" else "tokens"]) == 1


def test_logprobs_of_a_call_that_grows_by_nothing_come_with_no_text() -> None:
    log = TokenLogprob(token=1, piece=b"\xc3", logprob=-1.0)
    grown = Delta(calls=(CallDelta(index=0, name="f"),), logprobs=(log,))
    chunks = Chunks(question("chat", logprobs=0))
    chunks.grown(grown)
    (found,) = choices(chunks.grown(grown))
    assert found["delta"] == {"content": ""}
    assert len(found["logprobs"]["content"]) == 1


def test_logprobs_that_are_not_wanted_are_not_shown() -> None:
    log = TokenLogprob(token=1, piece=b"a", logprob=-1.0)
    found = choices(Chunks(question()).grown(Delta(text="a", logprobs=(log,))))
    assert [one["logprobs"] for one in found] == [None, None]


@pytest.mark.parametrize("last", [Delta(), Delta(finish="stop"), Delta(usage=USAGE)])
def test_answer_without_its_end_is_an_error(last: Delta) -> None:
    chunks = Chunks(question())
    chunks.grown(last)
    with pytest.raises(RemoteError, match="broke off"):
        chunks.closing()


def test_text_after_an_end_is_an_error() -> None:
    chunks = Chunks(question())
    chunks.grown(END)
    with pytest.raises(RemoteError, match="after its end"):
        chunks.grown(Delta(text="x"))


def test_choice_that_was_not_asked_for_is_an_error() -> None:
    with pytest.raises(RemoteError, match="not asked for"):
        Chunks(question()).grown(Delta(choice=1, text="x"))


LOGS = st.builds(
    TokenLogprob, token=st.just(1), piece=st.binary(max_size=3), logprob=st.floats(-99, 0),
    top=st.lists(st.tuples(st.just(1), st.binary(max_size=2), st.floats(-99, 0)), max_size=2)
    .map(tuple),
)  # fmt: skip
PARTS = st.builds(
    Delta, choice=st.integers(0, 2), tokens=st.just((1,)), text=st.text(max_size=3),
    reasoning=st.text(max_size=3), logprobs=st.lists(LOGS, max_size=2).map(tuple),
    calls=st.lists(st.builds(CallDelta, index=st.integers(0, 2), name=st.just("f"),
                             arguments=st.text(max_size=3)), max_size=2).map(tuple),
)  # fmt: skip


def ended(parts: list[Delta]) -> Iterator[Delta]:
    yield from parts
    yield from (Delta(choice=choice, finish="stop") for choice in range(3))
    yield Delta(usage=USAGE)


def together(found: list[Any]) -> list[dict[str, Any]]:
    """What a client makes of the chunks: each choice, its logprobs, and its end."""
    texts: defaultdict[int, str] = defaultdict(str)
    said: defaultdict[int, dict[str, str]] = defaultdict(lambda: defaultdict(str))
    logs: defaultdict[int, list[Any]] = defaultdict(list)
    for one in found:
        delta, index = one.get("delta", {}), one["index"]
        texts[index] += one.get("text", delta.get("content") or "")
        said[index]["reasoning"] += delta.get("reasoning_content") or ""
        for call in delta.get("tool_calls", ()):
            said[index][f"call {call['index']}"] += call["function"]["arguments"]
        logs[index] += _rows(one["logprobs"])
    return [{"text": texts[i], **said[i], "logs": logs[i]} for i in sorted(texts)]


def _rows(logprobs: dict[str, Any] | None) -> list[Any]:
    if logprobs is None or "content" in logprobs:
        return (logprobs or {"content": []})["content"]  # type: ignore[no-any-return]
    columns = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return list(zip(*(logprobs[name] for name in columns), strict=True))


@given(st.sampled_from(["chat", "text"]), st.lists(PARTS, max_size=12))
def test_stream_and_whole_say_the_same(kind: Kind, parts: list[Delta]) -> None:
    asked = question(kind, choices=3, logprobs=1)
    chunks, whole = Chunks(asked), Whole(asked)
    written = b""
    for delta in ended(parts):
        written += chunks.grown(delta)
        whole.take(delta)
    chunks.closing()
    answers = whole.body()["choices"]
    for answer in answers:
        if kind == "chat":
            answer["delta"] = answer.pop("message")
            for place, call in enumerate(answer["delta"].get("tool_calls", ())):
                call["index"] = _indexes(parts, answer["index"])[place]
    assert together(choices(written)) == together(answers)


def _indexes(parts: list[Delta], choice: int) -> list[int]:
    return sorted({call.index for one in parts if one.choice == choice for call in one.calls})


def test_only_an_ordinary_delta_is_plain() -> None:
    chunks = Chunks(question())
    assert chunks.plain(Delta(text="the choice has not begun")) is None
    chunks.grown(Delta(text="a"))
    assert chunks.plain(Delta()) == b""
    assert chunks.plain(END) is None
    plain = chunks.plain(Delta(text="b"))
    assert plain == chunks.grown(Delta(text="b"))
