"""How the command line looks: the log of a node, tables, JSON, errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from p2p_mesh import __version__
from p2p_mesh.journal import Entry

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}


class Terminal(Console):
    """rich's console, which would end the program when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def now() -> datetime:
    return datetime.now(UTC)


def json_log(stream: TextIO, clock: Callable[[], datetime] = now) -> Callable[[Entry], None]:
    """Writes each entry as one JSON object on a line of its own."""

    def write(entry: Entry) -> None:
        if entry.level == "debug":
            return
        line = {
            "timestamp": clock().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": entry.level,
            "event": entry.event,
            "message": entry.message,
            **entry.fields,
        }
        _print(stream, json.dumps(line, ensure_ascii=False))

    return write


def pretty_log(stream: TextIO, clock: Callable[[], datetime] = now) -> Callable[[Entry], None]:
    """Writes each entry as a line for people; colour only on a terminal."""
    console = Terminal(file=stream, highlight=False, soft_wrap=True)

    def write(entry: Entry) -> None:
        if entry.level == "debug":
            return
        at = clock().astimezone().strftime("%H:%M:%S")
        line = Text.assemble((f"{at} ", "dim"), (entry.message, _STYLES[entry.level]))
        try:
            console.print(line)
            if entry.event == "ready":
                console.print(_welcome(entry))
        except BrokenPipeError:
            return  # nobody reads any more; the node goes on

    return write


def _welcome(entry: Entry) -> Text:
    fields = entry.fields
    rows = [
        ("API", fields["api_url"]),
        ("Console", fields["console_url"]),
        ("Models", ", ".join(fields["models"]) or "none of its own"),
    ]
    if fields["invite"]:
        rows.append(("Invite", fields["invite"]))
    text = Text("\n")
    for label, value in rows:
        text.append(f"  {label:<8} ", "bold")
        text.append(f"{value}\n")
    if fields["invite"]:
        text.append("\n  On another machine: meshnode run --join <invite>\n", "dim")
    return text


def table(title: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output, as wide as its contents need: nothing is cut off."""
    widths = [max(map(len, column)) for column in zip(title, *rows, strict=True)]
    console = Terminal(highlight=False, soft_wrap=True)
    for style, row in (("bold", title), *(("", row) for row in rows)):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text("  ".join(cells).rstrip(), style))


def as_json(value: Any) -> None:
    _print(sys.stdout, json.dumps(value, indent=2, ensure_ascii=False))


def line(text: str) -> None:
    _print(sys.stdout, text)


def error(message: str) -> None:
    """One line on standard error."""
    console = Terminal(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), " ".join(message.split())))


def _print(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
        stream.flush()
    except BrokenPipeError:
        return  # nobody reads any more


VERSION_LINE = f"meshnode {__version__}"
