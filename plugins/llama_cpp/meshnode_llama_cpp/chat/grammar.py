"""What an answer must look like, as a grammar of all of it: llguidance's Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Calls are demanded in the
family's own spelling, their arguments by each tool's schema; reasoning stays free. Whether a
schema can be followed at all is found out by whoever compiles this.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from meshnode_llama_cpp.chat.closing import closed
from meshnode_llama_cpp.chat.format import SPECIAL, Format, Tags
from meshnode_llama_cpp.chat.values import is_text, properties
from p2p_mesh.core.records import Tool
from p2p_mesh.errors import RequestError

Special = Callable[[str], int | None]
"""The control token that a text is; None for any other text."""

_GUIDANCE = "x-guidance"
"""Where llguidance looks in a schema for how it is to be written."""
_BOUNDED = {"whitespace_pattern": r"( |\n[ \t]{0,16})?"}
"""JSON may have any number of spaces between two tokens: a small model writes them to the end of
its context.
"""

_ANY = "/(?s:.*)/"
_SPACE = r"/[ \n]{0,4}/"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request demands of an answer."""

    tools: tuple[Tool, ...] = ()
    required: bool = False
    """The answer is calls."""
    single: bool = False
    """It is one call at most."""
    schema: dict[str, Any] | None = None
    """Its content follows this."""
    opened: bool = False
    """The prompt ends within reasoning,"""
    closed: bool = False
    """or behind it."""


def grammar(form: Format, wanted: Wanted, special: Special) -> str | None:
    """None where nothing is demanded that a grammar could hold an answer to. Raises RequestError
    for tools whose calls cannot be written.
    """
    return _Grammar(form, wanted, special).text()


class _Grammar:
    def __init__(self, form: Format, wanted: Wanted, special: Special) -> None:
        self._form, self._wanted, self._special = form, wanted, special
        self._rules: dict[str, str] = {}

    def text(self) -> str | None:
        body = self._body()
        if body is None:
            return None
        # Free text takes in reasoning as well, where nothing says that it must end.
        thought = "" if body == "free" and not self._must_close() else self._thought()
        rules = {"start": f"{thought} {body}", **self._rules}
        return "".join(f"{name}: {rule}\n" for name, rule in rules.items())

    def _body(self) -> str | None:
        wanted = self._wanted
        if wanted.tools and wanted.required:
            return self._calls()
        if wanted.schema is not None:
            content = self._content(wanted.schema)
            return f"({content} | {self._calls()})" if wanted.tools else content
        if any(tool.strict for tool in wanted.tools):
            return self._free()
        return None

    def _rule(self, name: str, rule: str) -> str:
        self._rules[name] = rule
        return name

    def _literal(self, text: str) -> str:
        """A text, in which markers that are control tokens are those."""
        found: list[str] = []
        for piece in re.split(f"({SPECIAL.pattern})", text):
            token = self._special(piece) if SPECIAL.fullmatch(piece) else None
            if token is not None:
                found.append(f"<[{token}]>")
            elif piece:
                found.append(json.dumps(piece, ensure_ascii=False))
        return " ".join(found)

    def _content(self, schema: dict[str, Any]) -> str:
        before, after = map(self._literal, self._form.around)
        self._rule("content", _json(schema))
        return f"{before} content {after}"

    def _must_close(self) -> bool:
        """Whether an answer begins within reasoning."""
        thought = self._form.thought
        if thought is None or self._form.harmony:
            return False
        return self._wanted.opened or (thought.assumed and not self._wanted.closed)

    def _thought(self) -> str:
        thought = self._form.thought
        if thought is None or self._wanted.closed:
            return ""
        space = "" if self._form.harmony else _SPACE
        opens = self._literal(thought.opens)
        rest = f"{self._up_to(thought.closes)} {space}"
        if self._wanted.opened:
            return rest
        return f"{opens}? {rest}" if thought.assumed else f"({opens} {rest})?"

    def _up_to(self, closes: str) -> str:
        """Anything, and the first of these markers."""
        first = SPECIAL.match(closes)
        if first is not None and self._special(first[0]) is not None:
            self._rule("THOUGHT", _ANY)
            return f"THOUGHT {self._literal(closes)}"
        return self._rule("thought[lazy]", f"/(?s:.*){_escaped(closes)}/").removesuffix("[lazy]")

    def _calls(self, begun: str = "") -> str:
        """All of the calls; without what was written of them already."""
        first, between, last = self._form.calls.around
        opens = self._form.calls.spelled[0]
        if begun and first:
            head, begun = self._literal(first.removeprefix(begun)), ""
        else:
            head = self._literal(first)
        call = self._any_call("call", opens)
        start = self._any_call("begun", opens.removeprefix(begun)) if begun else call
        more = "" if self._is_single() else f"({self._literal(between)} {call})*"
        return f"({head} {start} {more} {self._literal(last)})"

    def _is_single(self) -> bool:
        """gpt-oss's answer ends with each call."""
        return self._wanted.single or self._form.harmony

    def _any_call(self, name: str, opens: str) -> str:
        calls = [
            self._rule(f"{name}_{place}", self._one_call(tool, place, opens))
            for place, tool in enumerate(self._wanted.tools)
        ]
        return self._rule(name, " | ".join(calls))

    def _one_call(self, tool: Tool, place: int, opens: str) -> str:
        _, between, closes = self._form.calls.spelled
        arguments = f"arguments_{place}"
        if arguments not in self._rules:
            tags = self._form.calls.tags
            self._rule(arguments, self._tagged(tool, place, tags) if tags else _arguments(tool))
        return f"{self._literal(opens + tool.name + between)} {arguments} {self._literal(closes)}"

    def _tagged(self, tool: Tool, place: int, tags: Tags) -> str:
        """Each parameter in the schema's order."""
        required = tool.parameters.get("required")
        required = required if isinstance(required, list) else []
        found = []
        for number, (name, schema) in enumerate(properties(tool.parameters).items()):
            key = self._literal(f"{tags.spelled[0]}{name}{tags.spelled[1]}")
            value = self._value(f"value_{place}_{number}", tool, schema, tags.spelled[2])
            found.append(f"({key} {value}){'' if name in required else '?'}")
        return " ".join(found) or '""'

    def _value(self, name: str, tool: Tool, schema: Any, closes: str) -> str:
        if is_text(schema) and "enum" not in schema:
            self._rule(f"{name}[lazy]", f"/(?s:.*){_escaped(closes)}/")
            return name
        if is_text(schema):
            texts = (json.dumps(text, ensure_ascii=False) for text in _texts(tool, schema["enum"]))
            return f"({' | '.join(texts)}) {self._literal(closes)}"
        shared = {key: tool.parameters[key] for key in ("$defs", "definitions")
                  if key in tool.parameters}  # fmt: skip
        whole = schema | shared if isinstance(schema, dict) else schema
        return f"{self._rule(name, _json(whole))} {self._literal(closes)}"

    def _free(self) -> str | None:
        """Text, and calls where the text that opens them turns up."""
        trigger = self._trigger()
        if trigger is None or any(self._form.around):
            return None
        if self._special(trigger) is not None:
            self._rule("TEXT", _ANY)
            free = f"TEXT ({self._literal(trigger)} {self._calls(trigger)})?"
        else:
            mark = _escaped(trigger)
            self._rule("TEXT", f"{_ANY} & ~/(?s:.*){mark}(?s:.*)/")
            self._rule("head[lazy]", f"/(?s:.*){mark}/")
            free = f"TEXT | head {self._calls(trigger)}"
        self._rule("free", free)
        return "free"

    def _trigger(self) -> str | None:
        calls = self._form.calls
        text = calls.around[0] or calls.spelled[0]
        return _first(text, (*calls.opens, *calls.again))


def _first(text: str, marks: Iterable[str]) -> str | None:
    return next((mark for mark in marks if text.startswith(mark)), None)


def _texts(tool: Tool, values: Any) -> list[str]:
    """What a text may be, of all that an enum names. Raises RequestError where that is none."""
    found = [one for one in values if isinstance(one, str)] if isinstance(values, list) else []
    if not found:
        raise RequestError(
            f"the parameters of {tool.name} have a string whose enum is no list of strings",
            param="tools",
        )
    return found


def _arguments(tool: Tool) -> str:
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    return _json({"type": "object"} | tool.parameters if tool.parameters else empty)


def _json(schema: Any) -> str:
    """JSON by a schema. How it is written is for us to say, not for a client."""
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema = {**closed(schema), _GUIDANCE: _BOUNDED}
    return f"%json {json.dumps(schema)}"


def _escaped(text: str) -> str:
    """As a part of a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n").replace("\\ ", " ")
