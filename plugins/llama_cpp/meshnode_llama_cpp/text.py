"""From the bytes of sampled tokens to text that may be sent: UTF-8 and stop strings.

What this decides: how much of an answer is certain. Half a character waits for its other half,
and text that may be the beginning of a stop string waits until it is not. However the bytes are
cut into tokens, the text that comes out in all is the same.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Text:
    """The text of one answer as its bytes come in. A stop string ends it, and is not part of it.

    Of several stop strings, the one that is complete first ends the text; of those that are
    complete at the same character, the longest.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""
        self.stopped = False

    def push(self, data: bytes) -> str:
        """What these bytes make certain."""
        return self._add(self._decoder.decode(data))

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        ready = self._add(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return ready

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text
        window = self._held + text
        cut = self._cut(window)
        if cut is not None:
            self.stopped, self._held = True, ""
            return window[:cut]
        sure = len(window) - self._doubtful(window)
        self._held = window[sure:]
        return window[:sure]

    def _cut(self, window: str) -> int | None:
        """Where the text ends, if a stop string is in the window."""
        found = [(window.find(stop) + len(stop), -len(stop)) for stop in self._stops
                 if stop in window]  # fmt: skip
        if not found:
            return None
        end, negative_length = min(found)
        return end + negative_length

    def _doubtful(self, window: str) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        for count in range(min(self._longest - 1, len(window)), 0, -1):
            if any(stop.startswith(window[-count:]) for stop in self._stops if len(stop) > count):
                return count
        return 0
