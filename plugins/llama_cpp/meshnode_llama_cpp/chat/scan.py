"""Finding things in text that comes in pieces: markers, and the end of a JSON value.

Nothing here depends on where the pieces are cut.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

_OUTSIDE = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'["\\\x00-\x1f]')
_ESCAPES = frozenset('"\\/bfnrtu')
_CLOSES = {"{": "}", "[": "]"}


class Markers:
    """A few texts, of which the first in a growing text is wanted."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        longest_first = sorted(texts, key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._first = re.compile("|".join(re.escape(text[0]) for text in texts) or "(?!)")
        self._beginnings = frozenset(text[:n] for text in texts for n in range(1, len(text)))
        self._longest = max(map(len, texts), default=0)

    def may_begin(self, text: str) -> bool:
        """Whether a marker, or the beginning of one, may stand in the text."""
        return self._first.search(text) is not None

    def find(self, text: str) -> re.Match[str] | None:
        return self._whole.search(text)

    def doubtful(self, text: str) -> int:
        """How many characters at the end may be the beginning of a marker."""
        for count in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-count:] in self._beginnings:
                return count
        return 0


@lru_cache(maxsize=256)
def markers(*texts: str) -> Markers:
    return Markers(texts)


class Json:
    """Follows one JSON object or array to its end, and mends what models get wrong within strings:
    control characters that stand as they are, and escapes that JSON does not know.
    """

    def __init__(self, within: str = "") -> None:
        """`within`: the brackets that are open already."""
        self.begun = bool(within)
        self.ended = False
        self.broken = False
        """A bracket closes another one; it is not taken."""
        self._open = list(within)
        self._quoted = False
        self._escaped = False

    def push(self, text: str) -> tuple[str, int]:
        """What belongs to the value, mended; and how many characters of the text that was."""
        written: list[str] = []
        at = 0
        while at < len(text) and not (self.ended or self.broken):
            at = self._advance(text, at, written)
        return "".join(written), at

    def _advance(self, text: str, at: int, written: list[str]) -> int:
        if self._escaped:
            self._escaped = False
            written.append("\\" + text[at] if text[at] in _ESCAPES else json.dumps("\\" + text[at],
                           ensure_ascii=False)[1:-1])  # fmt: skip
            return at + 1
        found = (_QUOTED if self._quoted else _OUTSIDE).search(text, at)
        if found is None:
            written.append(text[at:])
            return len(text)
        written.append(text[at : found.start()])
        self._meet(found[0], written)
        return found.start() if self.broken else found.end()

    def _meet(self, letter: str, written: list[str]) -> None:
        if letter == "\\":
            self._escaped = True
            return
        if letter == '"':
            self._quoted = not self._quoted
        elif self._quoted:
            letter = json.dumps(letter)[1:-1]
        elif letter in _CLOSES:
            self.begun = True
            self._open.append(letter)
        else:
            self._close(letter)
        if not self.broken:
            written.append(letter)

    def _close(self, letter: str) -> None:
        if not self._open or _CLOSES[self._open[-1]] != letter:
            self.broken = True
            return
        self._open.pop()
        self.ended = not self._open
