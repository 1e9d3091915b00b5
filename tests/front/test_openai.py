import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

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
TOOL = {"type": "function", "function": {"name": "f"}}


def chat(**fields: Any) -> Question:
    return question("chat", {"model": "tiny", "messages": [USER], **fields}, DRAWN)


def completion(**fields: Any) -> Question:
    return question("text", {"model": "tiny", "prompt": "hello", **fields}, DRAWN)


def only(asked: Question) -> InferenceRequest:
    (request,) = asked.requests
    return request


def variables(**fields: Any) -> dict[str, Any]:
    prompt = only(chat(**fields)).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.variables


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
        (
            InferenceRequest(
                id=DRAWN.id,
                model="tiny",  # type: ignore[arg-type]  # a NewType
                prompt=ChatPrompt(messages=({"role": "user", "content": "hello"},)),
                sampling=Sampling(seed=7),
                asked_at=1_700_000_000,
            ),
        ),
    )


def test_everything_that_a_chat_may_ask() -> None:
    asked = chat(
        temperature=0, stop=["a", "b"], max_completion_tokens=9, n=3, logprobs=True,
        top_logprobs=5, tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
        response_format={"type": "json_object"}, stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )  # fmt: skip
    request = only(asked)
    assert (asked.stream, asked.include_usage, asked.choices, asked.logprobs) == (True, True, 3, 5)
    assert (request.choices, request.logprobs, request.max_tokens) == (3, 5, 9)
    assert request.stop == ("a", "b")
    assert request.schema == {"type": "object"}
    assert isinstance(request.prompt, ChatPrompt)
    assert [tool.name for tool in request.prompt.tools] == ["f"]
    assert request.prompt.tool_choice == "required"
    assert not request.prompt.parallel_tool_calls


def test_everything_that_a_completion_may_ask() -> None:
    asked = completion(
        n=2, best_of=4, logprobs=3, echo=True, suffix="!", max_tokens=0,
        response_format={"type": "json_object"},
    )  # fmt: skip
    request = only(asked)
    assert request.prompt == TextPrompt(text="hello", suffix="!")
    assert (asked.choices, asked.logprobs) == (2, 3)
    assert (request.choices, request.logprobs, request.max_tokens) == (4, 3, 0)
    assert request.echo
    assert request.schema == {"type": "object"}


def test_best_of_asks_for_what_it_chooses_by() -> None:
    asked = completion(best_of=3)
    assert (only(asked).choices, only(asked).logprobs) == (3, 0)
    assert (asked.choices, asked.logprobs) == (1, None)
    assert completion(n=3, best_of=3) == completion(n=3)
    assert only(completion(n=2, best_of=2, stream=True)).logprobs is None


def test_logprobs_of_a_chat() -> None:
    assert only(chat()).logprobs is None
    assert only(chat(logprobs=True)).logprobs == 0
    assert only(chat(logprobs=False, top_logprobs=0)).logprobs is None
    assert wrong("chat", top_logprobs=1) == "top_logprobs"
    assert wrong("chat", logprobs=False, top_logprobs=1) == "top_logprobs"


def test_functions_are_answered_as_they_were_asked() -> None:
    assert chat(functions=[{"name": "f"}]).is_legacy
    assert not chat(tools=[TOOL]).is_legacy


def test_effort_is_what_the_template_sees() -> None:
    assert variables() == {}
    assert variables(reasoning_effort="high") == {"reasoning_effort": "high"}
    none = {"reasoning_effort": "none", "enable_thinking": False}
    assert variables(reasoning_effort="none") == none
    given = {"enable_thinking": True, "tone": "dry"}
    assert variables(reasoning_effort="none", chat_template_kwargs=given) == {**none, **given}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hello", [TextPrompt(text="hello")]),
        ("", [TextPrompt(text="")]),
        (["hello"], [TextPrompt(text="hello")]),
        ([1, 2, 3], [TokenPrompt(tokens=(1, 2, 3))]),
        ([[1, 2]], [TokenPrompt(tokens=(1, 2))]),
        ([0], [TokenPrompt(tokens=(0,))]),
        (["a", "b"], [TextPrompt(text="a"), TextPrompt(text="b")]),
        ([[1], "b"], [TokenPrompt(tokens=(1,)), TextPrompt(text="b")]),
    ],
)
def test_prompts(prompt: object, expected: list[object]) -> None:
    assert [request.prompt for request in completion(prompt=prompt).requests] == expected


def test_prompts_have_ids_of_their_own_and_seeds_if_none_is_chosen() -> None:
    drawn, chosen = completion(prompt=["a", "a"]), completion(prompt=["a", "a"], seed=5)
    assert [request.id for request in drawn.requests] == ["chatcmpl-1", "chatcmpl-1-1"]
    assert [request.sampling.seed for request in drawn.requests] == [7, 8]
    assert [request.sampling.seed for request in chosen.requests] == [5, 5]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ({}, "prompt"),
        (5, "prompt"),
        (["a", 5], "prompt[1]"),
        ([[1], [-2]], "prompt[1][0]"),
        ([1, "a"], "prompt[1]"),
        ([1, -1], "prompt[1]"),
        ([True], "prompt[0]"),
        ([[1, None]], "prompt[0][1]"),
        ([2**31], "prompt[0]"),
        (["a"] * 65, "prompt"),
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
        ("n", 0, "n"),
        ("n", 129, "n"),
        ("n", True, "n"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logprobs", "yes", "logprobs"),
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("ignore_eos", True, "ignore_eos"),
        ("topp", 1, "topp"),
    ],
)
def test_wrong_field_is_named(kind: Kind, field: str, value: object, param: str) -> None:
    assert wrong(kind, **{field: value}) == param


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("modalities", ["text", "audio"], "modalities"),
        ("audio", {}, "audio"),
        ("prediction", {}, "prediction"),
        ("web_search_options", {}, "web_search_options"),
        ("moderation", {}, "moderation"),
        ("verbosity", "low", "verbosity"),
        ("add_generation_prompt", False, "add_generation_prompt"),
        ("reasoning_effort", "much", "reasoning_effort"),
        ("chat_template_kwargs", {"tools": []}, "chat_template_kwargs.tools"),
        ("chat_template_kwargs", {str(i): 1 for i in range(65)}, "chat_template_kwargs"),
        ("top_logprobs", 21, "top_logprobs"),
        ("best_of", 2, "best_of"),
        ("echo", True, "echo"),
        ("prompt", "x", "prompt"),
    ],
)
def test_chat_refuses_what_it_cannot_do(field: str, value: object, param: str) -> None:
    assert wrong("chat", **{field: value}) == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 129}, "best_of"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"suffix": "x", "prompt": [1]}, "suffix"),
        ({"suffix": 5}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [USER]}, "messages"),
        ({"tools": [TOOL]}, "tools"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_completions_refuse_what_they_cannot_do(fields: dict[str, Any], param: str) -> None:
    assert wrong("text", **fields) == param


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "did you mean temperature?"),
        ({"add_generation_prompt": False}, "add_generation_prompt: false is not supported"),
        ({"n": True}, "n must be an integer from 1 to 128, not true"),
        ({"reasoning_effort": True}, "not true"),
    ],
)
def test_error_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        chat(**fields)


def test_no_prompt_at_all_is_said_to_be_empty() -> None:
    with pytest.raises(RequestError, match=r"or an array of these, not an empty array$"):
        completion(prompt=[])


def test_missing_model_says_where_they_are() -> None:
    with pytest.raises(RequestError, match="/v1/models"):
        question("chat", {"messages": [USER]}, DRAWN)


def test_what_asks_for_nothing_counts_as_absent() -> None:
    neutral = {name: values[0] for name, values in NEUTRAL["chat"].items() if values}
    null = dict.fromkeys(["temperature", "stop", "max_tokens", "stream", "tools", "seed", "n"])
    assert chat(**neutral, **null) == chat()
    nothing = {"n": 1, "best_of": 1, "echo": False, "suffix": "", "logit_bias": {}}
    assert completion(**nothing) == completion()
    assert chat(stop=[], tools=[], functions=[], logprobs=False, logit_bias={}) == chat()


def test_openais_own_affairs_have_no_effect() -> None:
    assert chat(**{name: {"any": ["thing"]} for name in ACCEPTED}) == chat()


def test_max_tokens_has_two_names_in_chat() -> None:
    assert only(chat(max_completion_tokens=5)).max_tokens == 5
    assert only(chat(max_completion_tokens=5, max_tokens=5)).max_tokens == 5
    assert wrong("chat", max_completion_tokens=5, max_tokens=6) == "max_completion_tokens"


def test_completions_have_sixteen_tokens_as_openais_do() -> None:
    assert only(completion()).max_tokens == 16
    assert only(completion(max_tokens=99)).max_tokens == 99
    assert only(chat()).max_tokens is None


def test_stream_options_are_checked() -> None:
    assert not chat(stream=True, stream_options={}).include_usage
    assert wrong("chat", stream=True, stream_options={"usage": 1}) == "stream_options.usage"
    assert wrong("chat", stream=True, stream_options=[]) == "stream_options"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "function", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | JSON, "content": st.text() | JSON},
    optional={"name": JSON, "tool_calls": JSON},
)
OPENAI: dict[Kind, set[str]] = {
    "chat": {*chat_params.CompletionCreateParamsBase.__annotations__, "stream"},
    "text": {*text_params.CompletionCreateParamsBase.__annotations__, "stream"},
}
OURS = {
    "top_k", "min_p", "repeat_penalty", "repetition_penalty", "response_format",
    "chat_template_kwargs",
}  # fmt: skip
BODY = st.fixed_dictionaries(
    {"model": st.text(max_size=5) | JSON},
    optional={
        **dict.fromkeys([*(OPENAI["chat"] | OPENAI["text"] | OURS) - {"model"}, "other"], JSON),
        "messages": st.lists(MESSAGE, max_size=3) | JSON,
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
    for request in asked.requests:
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=InferenceRequest)
        assert again == request


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_no_field_of_openais_is_unknown(kind: Kind) -> None:
    for field in OPENAI[kind]:
        try:
            (chat if kind == "chat" else completion)(**{field: {}})
        except RequestError as error:
            assert "not a field that" not in str(error)  # noqa: PT017  either outcome is right
            assert str(error.param).startswith(field)  # noqa: PT017


def test_every_field_is_documented() -> None:
    page = Path("docs/api.md").read_text()
    named = set(re.findall(r"`([a-z_]+)`", page))
    ours = {*OURS, *ACCEPTED, *NEUTRAL["chat"], *NEUTRAL["text"]}
    assert {*OPENAI["chat"], *OPENAI["text"], *ours} <= named
