from __future__ import annotations

from typing import Any

import pytest
from meshnode_llama_cpp.chat.format import FALLBACK
from meshnode_llama_cpp.chat.habits import Habits
from meshnode_llama_cpp.chat.media import Media
from meshnode_llama_cpp.chat.messages import Way, typed, written

from p2p_mesh.errors import RequestError

USER = {"role": "user", "content": "Hello"}


def write(*messages: dict[str, Any], introduction: str = "", **habits: Any) -> list[dict[str, Any]]:
    return written(messages, Habits(**habits), Way(FALLBACK, Media(""), introduction))


def called(arguments: Any = '{"a": 1}', **more: Any) -> dict[str, Any]:
    function = {"name": "add", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert write({"role": "user", "content": parts}) == [{"role": "user", "content": "one\ntwo"}]


def test_no_content_is_empty_or_none_as_the_template_takes_it() -> None:
    assert write({"role": "assistant", "content": None})[0]["content"] == ""
    assert write(called())[0]["content"] == ""
    assert write(called(), null=True)[0]["content"] is None


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"content": "Hello"}, "needs a role"),
        ({"role": "user", "content": 7}, "is text"),
        ({"role": "user", "content": [{"type": "video"}]}, "not 'video'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "takes no images"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "takes no audio"),
        ({"role": "user", "content": ["Hello"]}, "not 'str'"),
        ({"role": "user", "content": [{"type": "text"}]}, "needs a text"),
        ({"role": "assistant", "tool_calls": 7}, "is a list"),
        ({"role": "assistant", "tool_calls": [{}]}, "needs a function"),
        (called("[1]"), "not the text of a JSON object"),
        (called("{"), "not the text of a JSON object"),
        (called("[" * 100_000), "not the text of a JSON object"),
    ],
)
def test_messages_of_another_form_are_refused(message: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        write(message)
    assert caught.value.param == "messages"


def test_arguments_are_objects_or_text_as_the_template_takes_them() -> None:
    assert write(called())[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    text = write(called(), objects=False)[0]["tool_calls"][0]["function"]["arguments"]
    assert text == '{"a": 1}'
    assert write(called(""))[0]["tool_calls"][0]["function"]["arguments"] == {}


def test_long_ids_become_short_ones_that_still_match() -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "2"}
    first, second = write(called(), result, short_ids=True)
    assert first["tool_calls"][0]["id"] == second["tool_call_id"]
    assert len(second["tool_call_id"]) == 9


def test_reasoning_goes_where_the_template_reads_it() -> None:
    thought = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm."}
    assert "reasoning_content" not in write(thought)[0]
    assert write(thought, reasoning="reasoning_content")[0]["reasoning_content"] == "Hm."
    assert write(thought, reasoning="thinking")[0]["thinking"] == "Hm."
    both = called(content="So.", reasoning_content="Hm.")
    assert "thinking" not in write(both, reasoning="thinking")[0]


def test_a_developer_is_the_system_unless_the_template_knows_one() -> None:
    message = {"role": "developer", "content": "Be brief."}
    assert write(message)[0]["role"] == "system"
    assert write(message, developer=True)[0]["role"] == "developer"


def test_an_introduction_comes_in_the_system_message() -> None:
    assert write(USER, introduction="Tools.")[0] == {"role": "system", "content": "Tools."}
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert write(system, introduction="Tools.")[0]["content"] == "Be brief.\n\nTools."


def test_without_system_messages_the_user_says_it() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert write(system, USER, system=False) == [{"role": "user", "content": "Be brief.\n\nHello"}]
    assert write(system, system=False) == [{"role": "user", "content": "Be brief."}]


def test_calls_are_text_where_the_template_knows_none() -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "2"}
    assert write(called(content="So."), result, calls=False) == [
        {
            "role": "assistant",
            "content": 'So.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        },
        {"role": "user", "content": "<tool_response>\n2\n</tool_response>"},
    ]


def test_content_may_be_typed() -> None:
    assert typed([USER]) == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
