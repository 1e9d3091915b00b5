from typing import Any

import pytest

from p2p_mesh.errors import RequestError
from p2p_mesh.front.messages import messages

USER = {"role": "user", "content": "hello"}
PIXEL = "data:image/png;base64,iVBORw0KGgo="
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def read(*given: object, links: bool = False) -> tuple[dict[str, Any], ...]:
    return messages([*given], "messages", links=links)


def user(*parts: object) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


def image(url: str = PIXEL, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def sound(**given: Any) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav", **given}}


def test_developer_is_system_and_text_parts_are_lines() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [{"role": "developer", "content": "be brief"}, {**user(*parts), "name": "ann"}]
    assert read(*given) == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "ann"},
    )


def test_an_answer_of_ours_can_be_sent_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant", "content": "hi", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": [], "reasoning_content": "well",
    }  # fmt: skip
    (found,) = read(answer)
    assert found == {"role": "assistant", "content": "hi", "reasoning_content": "well"}


def test_an_answer_of_other_servers_can_be_sent_back() -> None:
    answer: dict[str, Any] = {
        "role": "assistant", "content": "hi", "id": "msg-1", "reasoning": "well",
        "reasoning_details": [{"type": "reasoning.text", "text": "well"}],
        "thinking_blocks": [{"type": "thinking", "thinking": "well"}],
        "provider_specific_fields": {"citations": None},
    }  # fmt: skip
    expected = {"role": "assistant", "content": "hi", "reasoning_content": "well"}
    assert read(answer) == read({**answer, "reasoning_content": "well"}) == (expected,)


def test_calls_and_their_results() -> None:
    asked = {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]}
    result = {"role": "tool", "tool_call_id": "abcdefghi", "content": "42"}
    assert read(USER, asked, result)[1:] == (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "42", "tool_call_id": "abcdefghi"},
    )


def test_functions_become_tools() -> None:
    function = {"name": "f", "arguments": "{}"}
    asked = {"role": "assistant", "content": None, "function_call": function}
    result = {"role": "function", "name": "f", "content": None}
    assert read(asked, result, asked, {**result, "content": "x"}) == (
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call00001", "type": "function", "function": function}]},
        {"role": "tool", "content": "", "name": "f", "tool_call_id": "call00001"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call00002", "type": "function", "function": function}]},
        {"role": "tool", "content": "x", "name": "f", "tool_call_id": "call00002"},
    )  # fmt: skip


def test_refusal_is_what_was_said() -> None:
    (field,) = read({"role": "assistant", "refusal": "no"})
    (part,) = read({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]})
    assert field == part == {"role": "assistant", "content": "no"}


def test_media_stay_parts() -> None:
    text = {"type": "text", "text": "what is it?"}
    (found,) = read(user(text, image(detail="low"), sound()))
    assert found["content"] == [text, image(), sound()]


def test_links_are_taken_where_they_may_be_fetched() -> None:
    (found,) = read(user(image("HTTPS://example.org/a.png")), links=True)
    assert found["content"] == [image("HTTPS://example.org/a.png")]
    with pytest.raises(RequestError, match="--remote-media") as caught:
        read(user(image("https://example.org/a.png")))
    assert caught.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("hello", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "assistant", "content": None}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
         "messages[0].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"role": "assistant", "tool_calls": [CALL] * 129}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": "x", "audio": {"id": "1"}}, "messages[0].audio"),
        ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content"),
        ({"role": "tool", "tool_call_id": "", "content": "x"}, "messages[0].tool_call_id"),
        ({"role": "function", "content": "x"}, "messages[0].name"),
        ({**USER, "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({**USER, "name": 5}, "messages[0].name"),
        ({**USER, "weight": 1}, "messages[0].weight"),
        ({**USER, "reasoning": "x"}, "messages[0].reasoning"),
        ({"role": "assistant", "reasoning": "a", "reasoning_content": "b"},
         "messages[0].reasoning"),
        ({"role": "assistant", "reasoning": {}}, "messages[0].reasoning"),
        ({"role": "user", "content": 1}, "messages[0].content"),
        (user(), "messages[0].content"),
        (user("x"), "messages[0].content[0]"),
        (user({"text": "x"}), "messages[0].content[0].type"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "text", "text": "x", "cache": 1}), "messages[0].content[0].cache"),
        (user({"type": "file", "file": {}}), "messages[0].content[0].type"),
        (user({"type": "image_url", "image_url": PIXEL}), "messages[0].content[0].image_url"),
        (user(image(detail="tiny")), "messages[0].content[0].image_url.detail"),
        (user(sound(format="ogg")), "messages[0].content[0].input_audio.format"),
        (user(sound(data="?")), "messages[0].content[0].input_audio.data"),
        ({"role": "system", "content": [image()]}, "messages[0].content[0].type"),
    ],
)  # fmt: skip
def test_wrong_message_is_named(given: object, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(given)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "url",
    ["", "x", "file:///etc/passwd", "data:,x", "data:text/html;base64,AAAA",
     "data:image/png,AAAA", "data:image/png;base64,", "data:image/png;base64,A",
     "data:image/png;base64,AA AA", "data:image/png;base64,\u00e9", " https://x/"],
)  # fmt: skip
def test_wrong_image_is_named(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(user(image(url)), links=True)
    assert caught.value.param == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize("count", [0, 4097])
def test_too_few_or_too_many(count: int) -> None:
    with pytest.raises(RequestError) as caught:
        read(*[USER] * count)
    assert caught.value.param == "messages"
