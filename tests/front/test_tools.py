from typing import Any

import pytest

from p2p_mesh.core.records import Tool
from p2p_mesh.errors import RequestError
from p2p_mesh.front.tools import Toolbox, toolbox
from p2p_mesh.http.body import Fields

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
WEATHER = {"name": "weather", "description": "Now.", "parameters": PARAMETERS, "strict": True}
TIME = {"name": "time"}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
WEATHER_TOOL = Tool(name="weather", description="Now.", parameters=PARAMETERS, strict=True)
TIME_TOOL = Tool(name="time", parameters=NOTHING)
BOTH = (WEATHER_TOOL, TIME_TOOL)


def read(**fields: Any) -> Toolbox:
    given = Fields(fields)
    found = toolbox(given)
    given.end()
    return found


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: object, *tools: object) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}}


def test_no_tools() -> None:
    assert read() == Toolbox()
    assert read(tools=[], functions=[], tool_choice="auto", parallel_tool_calls=True) == Toolbox()


def test_tools_may_be_called() -> None:
    assert read(tools=TOOLS) == Toolbox(BOTH)
    assert read(tools=TOOLS, parallel_tool_calls=False) == Toolbox(BOTH, parallel=False)


@pytest.mark.parametrize(
    ("choice", "tools", "mode"),
    [
        ("none", BOTH, "none"),
        ("auto", BOTH, "auto"),
        ("required", BOTH, "required"),
        (named("time"), (TIME_TOOL,), "required"),
        (allowed("auto", named("time")), (TIME_TOOL,), "auto"),
        (allowed("required", named("time"), named("weather")), BOTH, "required"),
    ],
)
def test_choice_among_tools(choice: object, tools: object, mode: str) -> None:
    box = read(tools=TOOLS, tool_choice=choice)
    assert (box.tools, box.choice) == (tools, mode)


def test_functions_are_tools_of_old() -> None:
    assert read(functions=[WEATHER, TIME]) == Toolbox(BOTH, parallel=False, is_legacy=True)
    box = read(functions=[WEATHER, TIME], function_call={"name": "time"})
    assert box == Toolbox((TIME_TOOL,), "required", parallel=False, is_legacy=True)
    assert read(functions=[TIME], function_call="none").choice == "none"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": [TOOLS[0]] * 129}, "tools"),
        ({"tools": ["x"]}, "tools[0]"),
        ({"tools": [{"function": TIME}]}, "tools[0].type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [named("")]}, "tools[0].function.name"),
        ({"tools": [named("a b")]}, "tools[0].function.name"),
        ({"tools": [named("x" * 129)]}, "tools[0].function.name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1]"),
        ({"tools": [{**TOOLS[0], "x": 1}]}, "tools[0].x"),
        ({"functions": [{**TIME, "parameters": []}]}, "functions[0].parameters"),
        ({"functions": [{**TIME, "x": []}]}, "functions[0].x"),
        ({"functions": [TIME], "tools": TOOLS}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("time")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": named("tide")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": allowed("none", named("time"))},
         "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        ({"functions": [TIME], "function_call": "required"}, "function_call"),
        ({"functions": [TIME], "function_call": {"name": "tide"}}, "function_call"),
        ({"functions": [TIME], "function_call": {}}, "function_call.name"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)  # fmt: skip
def test_wrong_tool_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**fields)
    assert caught.value.param == param
