"""Tools as a client declares them: checked in their shape, and as templates take them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from meshnode_llama_cpp.chat.format import NAME_PATTERN, Calls, spell
from p2p_mesh.core.records import Tool
from p2p_mesh.errors import RequestError

MAX_DEPTH = 64
MAX_SIZE = 256 * 2**10
"""Characters of a schema, as JSON."""


def check_tools(tools: Sequence[Tool]) -> None:
    """Raises RequestError. Whether a grammar can follow the schemas is not looked into."""
    names = [tool.name for tool in tools]
    for tool in tools:
        if not NAME_PATTERN.fullmatch(tool.name):
            raise RequestError(
                f"a tool is called {tool.name!r}; names are letters, digits and any of _ . : / -",
                param="tools",
            )
        if names.count(tool.name) > 1:
            raise RequestError(f"two tools are called {tool.name!r}", param="tools")
        check_schema(tool.parameters, "tools", f"the parameters of {tool.name}")


def check_schema(schema: Any, param: str, what: str) -> None:
    """Raises RequestError for what is too large to be looked at further, or no object."""
    if not isinstance(schema, dict):
        raise RequestError(f"{what} must be a JSON schema, an object", param=param)
    size = check_json(schema, param, what)
    if size > MAX_SIZE:
        raise RequestError(f"{what} have {size} characters, at most {MAX_SIZE}", param=param)


def check_json(value: Any, param: str, what: str) -> int:
    """How many characters it has as JSON. Raises RequestError where it is none, since a peer can
    send bytes and keys of any kind, and where it is nested too deeply to be looked at further.
    """
    level = _inner([value])
    for _ in range(MAX_DEPTH):
        if not all(isinstance(key, str) for one in level if isinstance(one, dict) for key in one):
            raise RequestError(f"{what} have a key that is no text", param=param)
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            break
    else:
        raise RequestError(f"{what} are nested deeper than {MAX_DEPTH} levels", param=param)
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{what} are no JSON: {error}", param=param) from None


def _inner(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return [one for one in inner if isinstance(one, dict | list | tuple)]


def shaped(tool: Tool) -> dict[str, Any]:
    """In OpenAI's shape, for which templates are written."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters or {"type": "object", "properties": {}},
        },
    }


def introduced(tools: Sequence[Tool], calls: Calls) -> str:
    """What a model is told of its tools where its template does not tell it."""
    listed = "\n".join(json.dumps(shaped(tool)["function"], ensure_ascii=False) for tool in tools)
    example = spell(calls, [("NAME", "ARGUMENTS")])
    return (
        "You can call these functions; each is given with a JSON schema of its parameters:\n\n"
        f"{listed}\n\n"
        "To call a function, write the following and nothing after it, with the function's name "
        f"and a JSON object of its arguments:\n\n{example}\n\n"
        "The result comes with the next message. Answer as usual where no function is needed."
    )
