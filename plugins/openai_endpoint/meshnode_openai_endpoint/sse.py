"""Server-sent events from bytes, however they are cut (WHATWG HTML, 9.2.6). Pure.

Only `data` means anything here; comments, names, ids and pauses are passed over.
"""

from __future__ import annotations

import re

from p2p_mesh.errors import RemoteError

EVENT_BYTES = 4 << 20
"""Of one event at most, and of one line."""

_LINE_END = re.compile(rb"\r\n|\r|\n")


class Events:
    """Takes a stream as it comes, and gives the data of each event that is complete."""

    def __init__(self, most: int = EVENT_BYTES) -> None:
        self._most = most
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._is_after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Raises RemoteError for an event that is too large."""
        if self._is_after_cr and chunk.startswith(b"\n"):
            chunk, self._is_after_cr = chunk[1:], False
        if not chunk:
            return []
        self._is_after_cr = chunk.endswith(b"\r")
        found = []
        # Only what is new is searched, so that a line that drips in costs no more than others.
        *ended, rest = _LINE_END.split(chunk)
        for part in ended:
            self._hold(part)
            if (event := self._end_line()) is not None:
                found.append(event)
        self._hold(rest)
        return found

    def _hold(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            raise RemoteError(f"an event of more than {self._most} bytes")
        self._line.append(part)

    def _end_line(self) -> bytes | None:
        line = b"".join(self._line)
        self._line.clear()
        if line:
            self._take(line)
            return None
        event = b"\n".join(self._data) if self._data else None
        self._data.clear()
        self._size = 0
        return event

    def _take(self, line: bytes) -> None:
        name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        else:
            self._size -= len(line)
