from __future__ import annotations

from typing import Any

import pytest
from meshnode_llama_cpp.chat.format import FALLBACK
from meshnode_llama_cpp.chat.tools import check_schema, check_tools, introduced, shaped

from p2p_mesh.core.records import Tool
from p2p_mesh.errors import RequestError


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ((Tool(name="a b"),), "names are letters"),
        ((Tool(name="a\n"),), "names are letters"),
        ((Tool(name="a"), Tool(name="a")), "two tools are called 'a'"),
        ((Tool(name="a", parameters=nested(70)),), "the parameters of a are nested deeper than 64"),
        ((Tool(name="a", parameters={"x": "y" * 300_000}),), "at most 262144"),
    ],
)
def test_tools_of_another_form_are_refused(tools: tuple[Tool, ...], says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        check_tools(tools)
    assert caught.value.param == "tools"


def test_good_tools_pass() -> None:
    check_tools((Tool(name="a.b-c:d_9", parameters=nested(60)), Tool(name="b")))


def test_a_schema_is_an_object() -> None:
    with pytest.raises(RequestError, match="must be a JSON schema") as caught:
        check_schema([], "response_format", "the schema")
    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"const": b"bytes"}, "are no JSON: Object of type bytes"),
        ({"a": [{b"key": 1}]}, "have a key that is no text"),
        ({"properties": {("an", "array"): {}}}, "have a key that is no text"),
        ({7: {}}, "have a key that is no text"),
    ],
)
def test_what_only_msgpack_can_say_is_no_schema(schema: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says) as caught:
        check_schema(schema, "tools", "the parameters")
    assert caught.value.param == "tools"


def test_a_tool_has_the_shape_that_templates_expect() -> None:
    assert shaped(Tool(name="add", description="Adds.")) == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {}},
        },
    }


def test_a_model_is_told_of_tools_and_how_to_call_them() -> None:
    text = introduced((Tool(name="add", description="Adds é."),), FALLBACK)
    assert '"description": "Adds é."' in text
    assert '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>' in text
