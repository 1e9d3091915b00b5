"""The parser of gpt-oss's answers (harmony): messages with headers.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...

The template has written `<|start|>assistant` already. A header's channel says whether a message is
reasoning (analysis) or content; a header with `to=functions.NAME` makes it a call, which may stand
in the role or in the channel. https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshnode_llama_cpp.chat.format import NAME
from meshnode_llama_cpp.chat.machine import MAX_CALLS, Machine
from meshnode_llama_cpp.chat.scan import Json, markers
from p2p_mesh.core.records import Tool

_HEADER = 512
"""Characters that a header may have."""
_BEGINNINGS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "assistant", "to=")
_MESSAGE = markers("<|message|>")
_END = markers("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_AGAIN = ("<|start|>", "<|channel|>")
_TOOL = re.compile(rf"\bto=functions\.({NAME})")
_OTHER = re.compile(r"\bto=(?!assistant\b)\S")
_ANALYSIS = re.compile(r"<\|channel\|>\s*analysis\b")


class Harmony(Machine):
    """`tools` that are none leave no calls: what is written to one is content."""

    def __init__(self, tools: Sequence[Tool] = (), *, single: bool = False) -> None:
        super().__init__(single=single)
        self._has_tools = bool(tools)
        self._json = Json()
        self._enter(self._header)

    def _header(self) -> bool:
        found = _MESSAGE.find(self._held[:_HEADER])
        if found is not None and self._is_header():
            header = self._take(found.end())
            return self._go_body(header)
        if self._is_header() and len(self._held) < _HEADER:
            return self._end_header()
        return self._no_header()

    def _no_header(self) -> bool:
        """What began like one is content, with its marker: the marker must not begin it again."""
        for mark in _AGAIN:
            if self._held.startswith(mark):
                self._give(self._take(len(mark)))
        return self._go_content()

    def _is_header(self) -> bool:
        rest = self._held.lstrip()
        return any(rest.startswith(text) or text.startswith(rest) for text in _BEGINNINGS)

    def _end_header(self) -> bool:
        """A header that was cut off says nothing; half a marker that nothing follows is text."""
        if not self._ended:
            return False
        if any(self._held.lstrip().startswith(text) for text in _BEGINNINGS if text[0] == "<"):
            self._held = ""
            return False
        return self._go_content()

    def _go_body(self, header: str) -> bool:
        tool = _TOOL.search(header)
        if tool is not None and self._has_tools:
            self._call(tool[1])
            self._json = Json()
            return self._enter(self._arguments)
        if _ANALYSIS.search(header) and not _OTHER.search(header):
            return self._enter(self._flowing, thinks=True, watched=_END)
        return self._go_content()

    def _go_content(self) -> bool:
        return self._enter(self._flowing, watched=_END)

    def _flowing(self) -> bool:
        mark = self._flow(_END)
        return bool(mark) and self._go_on(mark)

    def _go_on(self, mark: str) -> bool:
        """After a message. `<|end|>` and its like are gone; the others begin a header."""
        if mark in _AGAIN:
            self._held = mark + self._held
        if mark in ("<|return|>", "<|call|>"):
            return self._stop()
        return self._enter(self._header)

    def _arguments(self) -> bool:
        if not self._json.begun and not self._held.lstrip().startswith("{"):
            return self._no_object()
        arguments, used = self._json.push(self._held)
        self._take(used)
        self._argue(arguments)
        if self._json.broken:
            return self._go_content()
        return self._json.ended and self._end_call()

    def _no_object(self) -> bool:
        """Arguments are an object; anything else that was written for the tool is content."""
        return bool(self._held.strip()) and self._go_content()

    def _end_call(self) -> bool:
        if self._single or self._made >= MAX_CALLS:
            return self._stop()
        return self._enter(self._rest)

    def _rest(self) -> bool:
        """What stands between arguments and the end of their message is nothing."""
        found = _END.find(self._held)
        if found is None:
            self._held = self._held[len(self._held) - _END.doubtful(self._held) :]
            return False
        self._take(found.end())
        return self._go_on(found[0])
