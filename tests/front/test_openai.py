import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.names import RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    InferenceRequest,
    Sampling,
    TextPrompt,
    TokenPrompt,
)
from p2p_mesh.errors import RequestError
from p2p_mesh.front.openai import ACCEPTED, NEUTRAL, Drawn, Kind, Question, question

DRAWN = Drawn(id=RequestId("chatcmpl-1"), seed=7, asked_at=1_700_000_000)
USER = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> Question:
    return question("chat", {"model": "tiny", "messages": [USER], **fields}, DRAWN)


def completion(**fields: Any) -> Question:
    return question("text", {"model": "tiny", "prompt": "hello", **fields}, DRAWN)


def wrong(kind: Kind, **fields: Any) -> str:
    """The field that the error names."""
    with pytest.raises(RequestError) as caught:
        (chat if kind == "chat" else completion)(**fields)
    assert caught.value.param is not None
    assert caught.value.param.partition("[")[0].partition(".")[0] in str(caught.value)
    return caught.value.param


def test_least_chat() -> None:
    assert chat() == Question(
        "chat",
        InferenceRequest(
            id=DRAWN.id,
            model="tiny",  # type: ignore[arg-type]  # a NewType
            prompt=ChatPrompt(messages=({"role": "user", "content": "hello"},)),
            sampling=Sampling(seed=7),
            asked_at=1_700_000_000,
        ),
    )


def test_everything_that_is_honoured() -> None:
    asked = chat(
        temperature=0,
        top_p=0.5,
        top_k=20,
        min_p=0,
        repeat_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=3,
        stop=["a", "b"],
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    assert asked.request.sampling == Sampling(
        temperature=0,
        top_k=20,
        top_p=0.5,
        min_p=0,
        repeat_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=3,
    )
    assert asked.request.stop == ("a", "b")
    assert asked.request.max_tokens == 9
    assert asked.stream
    assert asked.include_usage


def test_developer_is_system_and_parts_are_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
    ]
    assert chat(messages=messages).request.prompt == ChatPrompt(
        messages=(
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb", "name": "ann"},
        )
    )


def test_an_answer_of_ours_can_be_sent_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [],
    }
    prompt = chat(messages=[USER, answer, USER]).request.prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[1] == {"role": "assistant", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([USER, {"content": "x"}], "messages[1].role"),
        ([USER, USER, {"role": "robot", "content": "x"}], "messages[2].role"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "assistant", "content": None}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[0].content[0].type",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}],
            "messages[0].content[0].cache",
        ),
        ([{**USER, "name": 5}], "messages[0].name"),
        ([{**USER, "weight": 1}], "messages[0].weight"),
        ([USER] * 4097, "messages"),
    ],
)
def test_wrong_message_is_named(messages: object, param: str) -> None:
    assert wrong("chat", messages=messages) == param


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", TextPrompt(text="hello")),
        ("", TextPrompt(text="")),
        (["hello"], TextPrompt(text="hello")),
        ([1, 2, 3], TokenPrompt(tokens=(1, 2, 3))),
        ([[1, 2]], TokenPrompt(tokens=(1, 2))),
        ([0], TokenPrompt(tokens=(0,))),
    ],
)
def test_prompts(prompt: object, expected: object) -> None:
    assert completion(prompt=prompt).request.prompt == expected


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ({}, "prompt"),
        (5, "prompt"),
        (["a", "b"], "prompt"),
        ([[1], [2]], "prompt"),
        ([1, "a"], "prompt[1]"),
        ([1, -1], "prompt[1]"),
        ([True], "prompt[0]"),
        ([[1, None]], "prompt[0][1]"),
        ([2**31], "prompt[0]"),
    ],
)
def test_wrong_prompt_is_named(prompt: object, param: str) -> None:
    assert wrong("text", prompt=prompt) == param


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("model", None, "model"),
        ("model", "", "model"),
        ("model", "x" * 257, "model"),
        ("model", 5, "model"),
        ("temperature", 2.1, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"),
        ("temperature", float("inf"), "temperature"),
        ("top_p", 1.1, "top_p"),
        ("top_k", -1, "top_k"),
        ("top_k", 1.5, "top_k"),
        ("min_p", 2, "min_p"),
        ("repeat_penalty", 0, "repeat_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("presence_penalty", 3, "presence_penalty"),
        ("frequency_penalty", -3, "frequency_penalty"),
        ("seed", 2**63, "seed"),
        ("seed", -(2**63) - 1, "seed"),
        ("seed", 1.0, "seed"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", -1, "max_tokens"),
        ("max_tokens", 2**31, "max_tokens"),
        ("stop", "", "stop"),
        ("stop", ["a", ""], "stop[1]"),
        ("stop", ["a", 1], "stop[1]"),
        ("stop", ["a"] * 17, "stop"),
        ("stop", 5, "stop"),
        ("stream", 1, "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("n", 2, "n"),
        ("n", True, "n"),
        ("logit_bias", {"5": 1}, "logit_bias"),
        ("logprobs", True, "logprobs"),
        ("topp", 1, "topp"),
    ],
)
def test_wrong_field_is_named(kind: Kind, field: str, value: object, param: str) -> None:
    assert wrong(kind, **{field: value}) == param


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {}),
        ("prediction", {}),
        ("web_search_options", {}),
        ("moderation", {}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("top_logprobs", 1),
    ],
)
def test_chat_refuses_what_it_cannot_do(field: str, value: object) -> None:
    assert wrong("chat", **{field: value}) == field


@pytest.mark.parametrize(
    ("field", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "x"), ("logprobs", 0), ("messages", [USER])],
)
def test_completions_refuse_what_they_cannot_do(field: str, value: object) -> None:
    assert wrong("text", **{field: value}) == field


def test_missing_model_says_where_they_are() -> None:
    with pytest.raises(RequestError, match="/v1/models"):
        question("chat", {"messages": [USER]}, DRAWN)


def test_what_asks_for_nothing_counts_as_absent() -> None:
    neutral = {name: values[0] for name, values in NEUTRAL["chat"].items() if values}
    absent = dict.fromkeys(["temperature", "stop", "max_tokens", "stream", "tools", "seed"])
    assert chat(**neutral, **{name: None for name in absent if name not in neutral}) == chat()
    assert completion(n=1, best_of=1, echo=False, suffix="", logit_bias={}) == completion()
    assert chat(stop=[]) == chat()


def test_openais_own_affairs_have_no_effect() -> None:
    assert chat(**{name: {"any": ["thing"]} for name in ACCEPTED}) == chat()


@pytest.mark.parametrize(
    ("seed", "kept"), [(0, 0), (2**63 - 1, 2**63 - 1), (-1, 2**63 - 1), (-(2**63), 0)]
)
def test_every_seed_is_kept_in_63_bits(seed: int, kept: int) -> None:
    assert chat(seed=seed).request.sampling.seed == kept


def test_repeat_penalty_has_two_names() -> None:
    assert chat(repetition_penalty=1.2).request.sampling.repeat_penalty == 1.2
    assert chat(repetition_penalty=1.2, repeat_penalty=1.2).request.sampling.repeat_penalty == 1.2
    assert wrong("chat", repetition_penalty=1.2, repeat_penalty=1.3) == "repetition_penalty"


def test_max_tokens_has_two_names_in_chat() -> None:
    assert chat(max_completion_tokens=5).request.max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).request.max_tokens == 5
    assert wrong("chat", max_completion_tokens=5, max_tokens=6) == "max_completion_tokens"
    assert wrong("text", max_completion_tokens=5) == "max_completion_tokens"


def test_completions_have_sixteen_tokens_as_openais_do() -> None:
    assert completion().request.max_tokens == 16
    assert completion(max_tokens=99).request.max_tokens == 99
    assert chat().request.max_tokens is None


def test_stream_options_are_checked() -> None:
    assert not chat(stream=True, stream_options={}).include_usage
    assert wrong("chat", stream=True, stream_options={"usage": 1}) == "stream_options.usage"
    assert wrong("chat", stream=True, stream_options=[]) == "stream_options"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "include_usage", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool"]) | JSON, "content": st.text() | JSON},
    optional={"name": JSON, "tool_calls": JSON},
)
HONOURED = [
    "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "max_tokens",
    "max_completion_tokens", "stream", "stream_options",
]  # fmt: skip
BODY = st.fixed_dictionaries(
    {"model": st.text(max_size=5) | JSON},
    optional={
        "messages": st.lists(MESSAGE, max_size=3) | JSON,
        "prompt": JSON,
        **dict.fromkeys([*HONOURED, *NEUTRAL["chat"], *ACCEPTED, "other"], JSON),
    },
)


@given(st.sampled_from(["chat", "text"]), BODY)
def test_any_object_is_a_request_or_an_error_that_names_a_field(
    kind: Kind, body: dict[str, Any]
) -> None:
    try:
        asked = question(kind, body, DRAWN)
    except RequestError as error:
        assert error.param  # noqa: PT017  either outcome is right
        return
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(asked.request), type=InferenceRequest)
    assert again == asked.request


def test_every_field_is_documented() -> None:
    page = Path("docs/api.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", page))
    assert {*HONOURED, *ACCEPTED, *NEUTRAL["chat"], *NEUTRAL["text"]} <= named
