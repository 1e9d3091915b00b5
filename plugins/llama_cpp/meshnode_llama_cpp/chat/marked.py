"""The parser of every format with markers: reasoning, then content with calls in it.

The states, in the order in which they come:

    beginning   space, then reasoning or a bare call, or content
    entering    where the template opened reasoning, and the model may once more
    leading     space after the opening of reasoning
    thinking    up to the closing of reasoning
    leaving     space after that; then `beginning` once more
    content     up to a marker; the space before calls is not part of it
    head        from there to the arguments: which tool
    arguments   JSON, or tags (tagged.py)
    tail        what is left of the object that the arguments stood in
    between     after a call: another one, the end, or content
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from meshnode_llama_cpp.chat.format import NAME, NAME_PATTERN, Format
from meshnode_llama_cpp.chat.machine import MAX_CALLS, Machine
from meshnode_llama_cpp.chat.scan import Json, markers
from meshnode_llama_cpp.chat.tagged import Tagged
from meshnode_llama_cpp.chat.values import properties, refuse
from p2p_mesh.core.records import Tool

_HEAD = 512
"""Characters within which a call says which tool it is for."""
_LEAD = re.compile(r"\s*+(?:```(?:json)?+)?+\s*+(\[?+)\s*+(?=\{)")  # tries nothing twice
_OBJECT = re.compile(
    r'\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"]*"\s*,\s*)?'
    rf'"(?:name|tool_name|function)"\s*:\s*"({NAME})"\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_BARE = ('{"name":"', '{"type":"function",', '[{"name":"', '[{"type":"function",')
_SPACE = re.compile(r"\s+")


class Marked(Machine):
    """`opened`: the prompt ends within reasoning; `closed`: behind it."""

    def __init__(
        self,
        format: Format,
        tools: Sequence[Tool] = (),
        *,
        opened: bool = False,
        closed: bool = False,
        single: bool = False,
    ) -> None:
        super().__init__(single=single)
        self._calls_form = format.calls if tools else None
        self._thought_form = format.thought
        self._schemas = {tool.name: properties(tool.parameters) for tool in tools}
        opens = (*format.calls.opens, *format.calls.again) if tools else ()
        self._wrappers = frozenset(filter(None, format.around))
        self._marks = markers(*opens, *sorted(self._wrappers))
        self._closing = markers(format.thought.closes) if format.thought else markers()
        self._raw = ""
        """What was taken for the beginning of a call, and is not sure to be one."""
        self._kept = 0
        """How much of the held text led here: it is content if no call follows."""
        self._bare = self._array = False
        self._json = Json()
        self._scanned = 0
        self._tidy = ""
        self._tagged: Tagged | None = None
        self._start(opened, closed)

    def _start(self, opened: bool, closed: bool) -> None:
        thought = self._thought_form
        if thought and (opened or (thought.assumed and not closed)):
            self._enter(self._entering, thinks=True)
        elif thought or (self._calls_form and self._calls_form.bare):
            self._enter(self._beginning)
        else:
            self._go_content()

    def _go_content(self) -> bool:
        self._array = False
        return self._enter(self._content, watched=self._marks)

    def _beginning(self) -> bool:
        rest = self._held.lstrip()
        if not rest and not self._ended:
            return False
        thought = self._thought_form
        if thought and rest.startswith(thought.opens):
            self._held = rest[len(thought.opens) :]
            return self._enter(self._leading, thinks=True)
        if thought and rest and thought.opens.startswith(rest) and not self._ended:
            return False
        return self._begin_bare(rest) or self._go_content()

    def _begin_bare(self, rest: str) -> bool:
        if not self._calls_form or not self._calls_form.bare or rest[:1] not in ("{", "["):
            return False
        self._raw = self._take(len(self._held) - len(rest))
        return self._go_head(bare=True)

    def _entering(self) -> bool:
        assert self._thought_form is not None
        opens, rest = self._thought_form.opens, self._held.lstrip()
        if opens.startswith(rest) and rest != opens and not self._ended:
            return False
        self._held = rest.removeprefix(opens)
        return self._enter(self._leading, thinks=True)

    def _leading(self) -> bool:
        self._held = self._held.lstrip()
        if not self._held:
            return False
        return self._enter(self._thinking, thinks=True, watched=self._closing)

    def _thinking(self) -> bool:
        if not self._flow(self._closing, trims=True):
            return False
        return self._enter(self._leaving)

    def _leaving(self) -> bool:
        self._held = self._held.lstrip()
        self._thought_form = None
        return bool(self._held) and self._enter(self._beginning)

    def _content(self) -> bool:
        mark = self._flow(self._marks, trims=self._calls_form is not None)
        return bool(mark) and (mark in self._wrappers or self._open(mark))

    def _open(self, mark: str) -> bool:
        assert self._calls_form is not None
        if mark in self._calls_form.again:
            self._held, self._kept = mark + self._held, len(mark)
            self._raw = self._trimmed
        else:
            self._raw = self._trimmed + mark
        return self._go_head()

    def _go_head(self, *, bare: bool = False) -> bool:
        self._bare = bare
        self._json, self._scanned, self._tidy = Json(), 0, ""
        return self._enter(self._head)

    def _fail(self) -> bool:
        """It was no call."""
        self._give(self._raw + self._take(self._kept))
        self._raw, self._kept = "", 0
        return self._go_content()

    def _head(self) -> bool:
        assert self._calls_form is not None
        window = self._held[:_HEAD]
        for head in self._calls_form.heads:
            if found := head.match(window):
                return self._begin(found)
        lead = _LEAD.match(window) if self._calls_form.objects else None
        if lead is not None:
            return self._object(lead, window)
        if self._ended or len(self._held) >= _HEAD or self._hopeless():
            return self._fail()
        return False

    def _hopeless(self) -> bool:
        """Where only an object may follow, anything else says soon that none does."""
        assert self._calls_form is not None
        rest = _SPACE.sub("", self._held)
        fits = any(lead.startswith(rest) for lead in ("```json[", "```[", "["))
        return not self._calls_form.heads and not fits

    def _object(self, lead: re.Match[str], window: str) -> bool:
        if self._bare and not self._plausible(window):
            return self._fail()
        found = _OBJECT.match(window, lead.end())
        if found is not None:
            self._array |= bool(lead[1])
            return self._begin(found, inside=True)
        return self._whole(lead)

    def _plausible(self, window: str) -> bool:
        rest = _SPACE.sub("", window)
        return any(text.startswith(rest) or rest.startswith(text) for text in _BARE)

    def _whole(self, lead: re.Match[str]) -> bool:
        """An object whose parts come in another order is read when it is complete."""
        start = max(self._scanned, lead.end())
        tidy, used = self._json.push(self._held[start:])
        self._tidy += tidy
        self._scanned = start + used
        if self._json.ended:
            return self._read_object(lead)
        return self._fail() if self._json.broken or self._ended else False

    def _read_object(self, lead: re.Match[str]) -> bool:
        found = _called(self._tidy)
        if found is None or (self._bare and found[0] not in self._schemas):
            return self._fail()
        self._array |= bool(lead[1])
        self._take(self._scanned)
        self._made_call(found[0])
        self._argue(found[1])
        return self._finish_call()

    def _begin(self, found: re.Match[str], *, inside: bool = False) -> bool:
        assert self._calls_form is not None
        if self._bare and found[1] not in self._schemas:
            return self._fail()
        self._take(found.end())
        self._made_call(found[1])
        if self._calls_form.tags is not None:
            self._tagged = Tagged(self._calls_form.tags, self._schemas.get(found[1], {}))
            return self._enter(self._tags)
        self._json, self._scanned = Json(), 0
        return self._enter(self._inside if inside else self._arguments)

    def _made_call(self, name: str) -> None:
        self._call(name)
        self._raw, self._kept = "", 0

    def _arguments(self) -> bool:
        return self._read_arguments() and (self._json.broken or self._finish_call())

    def _inside(self) -> bool:
        if not self._read_arguments():
            return False
        if self._json.broken:
            return True
        self._json = Json(within="{")
        return self._enter(self._tail)

    def _read_arguments(self) -> bool:
        """Whether they have ended, or broken off."""
        arguments, used = self._json.push(self._held)
        self._take(used)
        self._argue(arguments)
        if self._json.broken:
            self._go_content()
        return self._json.ended or self._json.broken

    def _tags(self) -> bool:
        assert self._tagged is not None
        arguments, used = self._tagged.push(self._held)
        self._take(used)
        self._argue(arguments)
        if self._tagged.broken:
            return self._go_content()
        return self._tagged.ended and self._finish_call()

    def _tail(self) -> bool:
        """Models forget the last bracket now and then."""
        self._held = self._held.lstrip()
        if not self._held:
            return False
        if self._scanned == 0 and self._held[0] not in "},":
            return self._finish_call()
        _, self._scanned = self._json.push(self._held)
        self._take(self._scanned)
        return (self._json.ended or self._json.broken) and self._finish_call()

    def _finish_call(self) -> bool:
        self._scanned = 0
        if self._single or self._made >= MAX_CALLS:
            return self._stop()
        return self._enter(self._between)

    def _between(self) -> bool:
        self._held = self._held.lstrip()
        form = self._calls_form
        assert form is not None
        if not self._held:
            return False
        if self._held[0] == "{" and (self._array or form.bare):
            return self._go_head(bare=not self._array)
        return self._next_call(form.skips + ((",", "]") if self._array else ()))

    def _next_call(self, skips: tuple[str, ...]) -> bool:
        form = self._calls_form
        assert form is not None
        skips = tuple(filter(None, skips))
        token = self._next(*form.ends, *skips, *form.opens, *form.again)
        if token is None:
            return False
        if token in form.ends:
            return self._stop()
        if token in skips:
            self._array = self._array and token != "]"
            return True
        self._trimmed = ""
        return self._open(token) if token else self._go_content()


def _called(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call that is a whole object; None if it is none."""
    value = _loaded(text)
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    names = [value[key] for key in ("name", "tool_name", "function") if key in value]
    arguments = [value[key] for key in ("arguments", "parameters") if key in value]
    if not names or not arguments or not isinstance(names[0], str):
        return None
    spelled = _spelled(arguments[0])
    return (names[0], spelled) if spelled and NAME_PATTERN.fullmatch(names[0]) else None


def _spelled(arguments: Any) -> str | None:
    """Arguments are an object, or the text of one."""
    if isinstance(arguments, str):
        arguments = _loaded(arguments)
    if not isinstance(arguments, dict):
        return None
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can escape
        return json.dumps(arguments)
    except ValueError:  # a number beyond all bounds
        return None
    return text


def _loaded(text: str) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
