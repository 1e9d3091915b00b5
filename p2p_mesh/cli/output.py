"""How the command line looks: the log of a node, tables, JSON, errors."""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from p2p_mesh import __version__
from p2p_mesh.journal import Entry

QUEUED = 10_000
"""Pieces of output that may wait to be written."""

CLOSE_SECONDS = 0.5

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red"}


class Terminal(Console):
    """rich's console, which would end the program when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def now() -> datetime:
    return datetime.now(UTC)


def plain(text: str) -> str:
    """Text that may come from a stranger, such as the name of a peer: control characters, which
    could rewrite the terminal or forge a line, become visible.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class Sink:
    """A stream that is written by a thread of its own: a terminal that was stopped, or a pipe
    that nobody reads, must not stop the node. What does not fit its queue is dropped.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """None is what Python makes of an output that was closed before it began."""
        self._stream = stream
        if isinstance(self._stream, io.TextIOWrapper):  # a terminal may know fewer characters
            self._stream.reconfigure(errors="backslashreplace")
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUED)
        self._thread = threading.Thread(target=self._run, daemon=True, name="output")
        self._thread.start()

    def write(self, text: str) -> int:
        with suppress(queue.Full):
            self._queue.put_nowait(text)
        return len(text)

    def flush(self) -> None:
        """Nothing to do: the thread flushes what it writes."""

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return "utf-8" if self._stream is None else self._stream.encoding

    def close(self) -> None:
        """Waits for what is queued, a second at most."""
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while (text := self._queue.get()) is not None:
            if self._stream is None:
                continue
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                continue  # nobody reads any more, or the disk is full; the node goes on


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
        with suppress(BrokenPipeError):  # nobody reads any more; the node goes on
            _print(stream, json.dumps(line, ensure_ascii=False))

    return write


def pretty_log(stream: TextIO, clock: Callable[[], datetime] = now) -> Callable[[Entry], None]:
    """Writes each entry as a line for people; colour only on a terminal."""
    console = Terminal(file=stream, highlight=False, soft_wrap=True)

    def write(entry: Entry) -> None:
        if entry.level == "debug":
            return
        at = clock().astimezone().strftime("%H:%M:%S")
        line = Text.assemble((f"{at} ", "dim"), (plain(entry.message), _STYLES[entry.level]))
        try:
            console.print(line)
            if entry.event == "ready":
                console.print(_welcome(entry))
        except BrokenPipeError:
            return  # nobody reads any more; the node goes on

    return write


def _welcome(entry: Entry) -> Text:
    fields = entry.fields
    waiting = [f"{one} (waits for other nodes)" for one in fields.get("waiting", ())]
    rows = [
        ("API", fields["api_url"]),
        ("Console", fields["console_url"]),
        ("Models", ", ".join([*fields["models"], *waiting]) or "none of its own"),
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
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(title, *rows, strict=True)]
    console = Terminal(highlight=False, soft_wrap=True)
    for style, row in (("bold", title), *(("", row) for row in rows)):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text("  ".join(cells).rstrip(), style))


def as_json(value: Any) -> None:
    _print(sys.stdout, json.dumps(value, indent=2, ensure_ascii=False))


def line(text: str) -> None:
    _print(sys.stdout, plain(text) if text else text)


def note(message: str) -> None:
    """One line on standard error, for people: standard output holds what was asked for."""
    Terminal(stderr=True, highlight=False, soft_wrap=True).print(Text(plain(message), "dim"))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Shows what is waited for, as one line on standard error that changes; a terminal only."""
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        sys.stderr.write("\r" + plain(text).ljust(shown))
        sys.stderr.flush()
        shown = len(plain(text))

    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        yield show
    finally:
        sys.stderr.write("\r" + " " * shown + "\r")
        sys.stderr.flush()


def date(seconds: float | None) -> str:
    """A time in the terminal's own zone; a dash for none."""
    if seconds is None:
        return "-"
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def error(message: str) -> None:
    """One line on standard error."""
    console = Terminal(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), plain(" ".join(message.split()))))


def _print(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


VERSION_LINE = f"meshnode {__version__}"
