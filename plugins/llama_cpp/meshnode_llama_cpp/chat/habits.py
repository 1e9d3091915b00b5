"""What a chat template takes, found out by rendering small conversations with it, once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
Render = Callable[[Sequence[Message], Sequence[Message] | None], str | None]
"""The text for messages and tools; None where the template refuses, or fails."""

_NEEDLE, _OTHER = "meshneedle", "meshthread"
_USER: Message = {"role": "user", "content": "Hello"}
_ID = "call_0123456789abcdef"
SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_TOOL: Message = {
    "type": "function",
    "function": {
        "name": _NEEDLE,
        "description": "Sews.",
        "parameters": {
            "type": "object",
            "properties": {"colour": {"type": "string", "description": "Of the thread."}},
            "required": ["colour"],
        },
    },
}
_THINKS = re.compile(r"""(?:message|m|msg)(?:\.|\[['"])thinking\b""")


@dataclass(frozen=True, slots=True)
class Habits:
    tools: bool = True
    """Shows the tools that it is given,"""
    calls: bool = True
    """and the calls of earlier messages."""
    objects: bool = True
    """Wants the arguments of calls as objects, not as JSON text."""
    null: bool = False
    """Takes no content (None) beside calls; otherwise it is empty."""
    parallel: bool = True
    """Shows all the calls of a message."""
    short_ids: bool = False
    """Takes ids of calls only if they are nine letters and digits (Mistral)."""
    system: bool = True
    """Shows a message of the role `system`,"""
    developer: bool = False
    """and knows the role `developer`."""
    typed: bool = False
    """Wants content as a list of parts."""
    reasoning: str = ""
    """The field in which it reads the reasoning of earlier answers."""


def find(render: Render, source: str) -> Habits:
    """The habits of the template with that source."""
    typed = not _shows(render, [_user(_NEEDLE)]) and _shows(render, [_user(_parts(_NEEDLE))])
    calls = _find_calls(render)
    return Habits(
        tools=_NEEDLE in (render([_USER], [_TOOL]) or ""),
        calls=calls is not None,
        **(calls or {}),
        system=_shows(render, [{"role": "system", "content": _NEEDLE}, _USER]) or typed,
        developer="developer" in source,
        typed=typed,
        reasoning=_reasoning(source),
    )


def _reasoning(source: str) -> str:
    if "reasoning_content" in source:
        return "reasoning_content"
    return "thinking" if _THINKS.search(source) else ""


def _user(content: Any) -> Message:
    return {"role": "user", "content": content}


def _parts(text: str) -> list[Message]:
    return [{"type": "text", "text": text}]


def _shows(render: Render, messages: Sequence[Message]) -> bool:
    return _NEEDLE in (render(messages, None) or "")


def _find_calls(render: Render) -> dict[str, bool] | None:
    """How it takes calls; None if it takes none. With an object as arguments, with as little
    else as possible, first.
    """
    for short in (False, True):
        for objects in (True, False):
            for null in (True, False):
                text = render(_called(1, objects=objects, null=null, short=short), [_TOOL])
                if text is not None and _is_good(text, null=null):
                    two = render(_called(2, objects=objects, null=null, short=short), [_TOOL])
                    parallel = two is not None and "colour1" in two
                    return {"objects": objects, "null": null, "short_ids": short,
                            "parallel": parallel}  # fmt: skip
    return None


def _is_good(text: str, *, null: bool) -> bool:
    """Arguments are there, once encoded, and not as Python prints them."""
    bad = ("'colour0'", '\\"colour0\\"')
    return _OTHER in text and not any(one in text for one in bad) and not (null and "None" in text)


def _called(count: int, *, objects: bool, null: bool, short: bool) -> list[Message]:
    """A conversation with so many calls, and their results."""
    ids = [f"call{n}0000" if short else f"{_ID}{n}" for n in range(count)]
    calls = []
    for n, call_id in enumerate(ids):
        arguments = {f"colour{n}": _OTHER}
        function = {"name": _NEEDLE, "arguments": arguments if objects else json.dumps(arguments)}
        calls.append({"id": call_id, "type": "function", "function": function})
    results = [{"role": "tool", "tool_call_id": call_id, "name": _NEEDLE, "content": "Done."}
               for call_id in ids]  # fmt: skip
    answer = {"role": "assistant", "content": None if null else "", "tool_calls": calls}
    return [_USER, answer, *results]
