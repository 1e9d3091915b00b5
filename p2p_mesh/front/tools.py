"""The tools that a chat may call, and whether it must: `tools` and what came before them,
`functions`. Pure.

Choosing among tools is done here: a named tool is required where it is the only one that the
model hears of, and allowed tools are all that there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, cast

from p2p_mesh.core.records import MAX_TOOLS, Tool
from p2p_mesh.errors import RequestError
from p2p_mesh.http.body import Fields, boolean, items, mapping, text, word

Choice = Literal["auto", "none", "required"]

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
"""What OpenAI takes a function for that names no parameters."""


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What a chat may call."""

    tools: tuple[Tool, ...] = ()
    choice: Choice = "auto"
    parallel: bool = True
    is_legacy: bool = False
    """Asked with `functions`, and so answered with a `function_call`."""


def toolbox(fields: Fields) -> Toolbox:
    """Takes all fields that are about tools."""
    tools = fields.take("tools", items(_tool, 0, MAX_TOOLS)) or ()
    functions = fields.take("functions", items(_function, 0, MAX_TOOLS)) or ()
    parallel = fields.take("parallel_tool_calls", boolean)
    if tools and functions:
        raise RequestError("functions are tools' old name; give tools alone", param="functions")
    _check_names(tools or functions, "tools" if tools else "functions")
    box = Toolbox(tools, parallel=parallel is not False)
    if functions:
        box = Toolbox(functions, parallel=False, is_legacy=True)
    chosen = fields.take("tool_choice", partial(_chosen, box=box))
    called = fields.take("function_call", partial(_called, box=box))
    return chosen or called or box


def _check_names(tools: Sequence[Tool], name: str) -> None:
    names = [tool.name for tool in tools]
    for place, one in enumerate(names):
        if one in names[:place]:
            raise RequestError(f"{name} has {one!r} twice", param=f"{name}[{place}]")


def _tool(value: Any, name: str) -> Tool:
    fields = Fields(mapping(value, name), name)
    fields.require("type", word("function"))
    function = fields.require("function", _function)
    fields.end()
    return function


def _function(value: Any, name: str) -> Tool:
    fields = Fields(mapping(value, name), name)
    tool = Tool(
        name=fields.require("name", function_name),
        description=fields.take("description", text) or "",
        parameters=fields.take("parameters", mapping) or _NO_ARGUMENTS,
        strict=fields.take("strict", boolean) or False,
    )
    fields.end()
    return tool


def function_name(value: Any, name: str) -> str:
    """Reads the name of a function: OpenAI's letters, and those of MCP's tools."""
    found = text(value, name)
    if not _NAME.fullmatch(found):
        raise RequestError(
            f"{name} must have 1 to 128 letters, digits and signs of _ - . : /", param=name
        )
    return found


def _chosen(value: Any, name: str, *, box: Toolbox) -> Toolbox:
    if not isinstance(value, dict):
        return _with_choice(box, word("none", "auto", "required")(value, name), name)
    fields = Fields(value, name)
    if fields.require("type", word("function", "allowed_tools")) == "function":
        wanted = fields.require("function", _named)
        mode = "required"
        names: tuple[str, ...] = (wanted,)
    else:
        names, mode = fields.require("allowed_tools", _allowed)
    fields.end()
    return _with_choice(_only(box, names, name), mode, name)


def _allowed(value: Any, name: str) -> tuple[tuple[str, ...], str]:
    fields = Fields(mapping(value, name), name)
    mode = fields.require("mode", word("auto", "required"))
    names = fields.require("tools", items(_tool_named, 1, MAX_TOOLS))
    fields.end()
    return names, mode


def _tool_named(value: Any, name: str) -> str:
    fields = Fields(mapping(value, name), name)
    fields.require("type", word("function"))
    found = fields.require("function", _named)
    fields.end()
    return found


def _named(value: Any, name: str) -> str:
    fields = Fields(mapping(value, name), name)
    found = fields.require("name", function_name)
    fields.end()
    return found


def _called(value: Any, name: str, *, box: Toolbox) -> Toolbox:
    if not isinstance(value, dict):
        return _with_choice(box, word("none", "auto")(value, name), name)
    return _with_choice(_only(box, (_named(value, name),), name), "required", name)


def _only(box: Toolbox, names: Sequence[str], name: str) -> Toolbox:
    there = [tool.name for tool in box.tools]
    for one in names:
        if one not in there:
            raise RequestError(f"{name} names {one!r}, which is not among the tools", param=name)
    return replace(box, tools=tuple(tool for tool in box.tools if tool.name in names))


def _with_choice(box: Toolbox, choice: str, name: str) -> Toolbox:
    if choice == "required" and not box.tools:
        raise RequestError(f"{name} demands a call, and there are no tools", param=name)
    return replace(box, choice=cast("Choice", choice))
