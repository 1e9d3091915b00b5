"""Arguments that are written as tags, read as the JSON object that they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshnode_llama_cpp.chat.format import Tags
from meshnode_llama_cpp.chat.scan import markers
from meshnode_llama_cpp.chat.values import is_text, quoted, spelled

_KEY = 512
"""Characters within which the next parameter says its name."""


class Tagged:
    """The arguments of one call. Strings come as they grow, other values when they are whole."""

    def __init__(self, form: Tags, schemas: Mapping[str, Any]) -> None:
        self.ended = self.broken = False
        self._form, self._schemas = form, schemas
        self._closing = markers(form.value_ends)
        self._schema: Any = None
        self._count = 0
        self._within = self._begun = False

    def push(self, text: str) -> tuple[str, int]:
        """What the text adds to the object, and how much of it was read; the rest is to come
        again, with what follows.
        """
        written: list[str] = []
        at = 0
        while not (self.ended or self.broken):
            step = (
                self._value(text[at:], written) if self._within else self._key(text[at:], written)
            )
            at += step
            if step == 0:
                break
        return "".join(written), at

    def _key(self, text: str, written: list[str]) -> int:
        if found := self._form.ends.match(text[:_KEY]):
            written.append("}" if self._count else "{}")
            self.ended = True
            return found.end()
        found = self._form.key.match(text[:_KEY])
        if found is None:
            if len(text) >= _KEY or text.lstrip()[:1] not in ("", "<"):
                self._break(written)
            return 0
        written.append((", " if self._count else "{") + quoted(found[1]) + ": ")
        self._count += 1
        self._schema = self._schemas.get(found[1])
        self._within, self._begun = True, False
        return found.end()

    def _break(self, written: list[str]) -> None:
        """What follows is no parameter. The object is closed, so that it is one."""
        written.append("}" if self._count else "{}")
        self.broken = True

    def _value(self, text: str, written: list[str]) -> int:
        found = self._closing.find(text)
        if is_text(self._schema):
            sure = found.start() if found else self._sure(text)
            return self._grow(text, sure, found.end() if found else None, written)
        if found is None:
            return 0
        value = text[: found.start()]
        written.append(spelled(self._bared(value), self._schema))
        self._within = False
        return found.end()

    def _bared(self, value: str) -> str:
        return value.removeprefix("\n").removesuffix("\n") if self._form.lines else value

    def _sure(self, text: str) -> int:
        sure = len(text) - self._closing.doubtful(text)
        return sure - (self._form.lines and text[:sure].endswith("\n"))

    def _grow(self, text: str, sure: int, end: int | None, written: list[str]) -> int:
        """A string, up to where it is sure."""
        value = text[:sure]
        if not self._begun and (value or end is not None):
            written.append('"')
            self._begun = True
            value = value.removeprefix("\n") if self._form.lines else value
        if end is not None:
            value = value.removesuffix("\n") if self._form.lines else value
            self._within = False
        written.append(quoted(value)[1:-1] + ('"' if end is not None else ""))
        return sure if end is None else end
