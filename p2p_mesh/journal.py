"""What a node says while it runs: events with a name, a sentence and fields.

Everything that would be logged goes through a Journal. The command line decides how it looks
(cli/output.py), the node passes each event on to the plugins, tests read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Entry:
    level: Level
    event: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """Hands each entry to every listener, in order."""

    def __init__(self, *listeners: Callable[[Entry], None]) -> None:
        self._listeners = list(listeners)

    def listen(self, listener: Callable[[Entry], None]) -> None:
        self._listeners.append(listener)

    def write(self, level: Level, event: str, message: str, **fields: Any) -> None:
        entry = Entry(level, event, message, fields)
        for listener in self._listeners:
            listener(entry)

    def debug(self, event: str, message: str, **fields: Any) -> None:
        self.write("debug", event, message, **fields)

    def info(self, event: str, message: str, **fields: Any) -> None:
        self.write("info", event, message, **fields)

    def warning(self, event: str, message: str, **fields: Any) -> None:
        self.write("warning", event, message, **fields)

    def error(self, event: str, message: str, **fields: Any) -> None:
        self.write("error", event, message, **fields)
