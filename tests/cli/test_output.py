"""How it looks: JSON lines, lines for people, tables."""

import io
import json
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from p2p_mesh.cli import output
from p2p_mesh.journal import Entry

READY = Entry(
    "info", "ready", "alice is ready",
    {"api_url": "http://localhost:9337/v1", "console_url": "http://localhost:3131",
     "models": ["tiny"], "invite": "mn1_" + "x" * 400},
)  # fmt: skip


def clock() -> datetime:
    return datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)


class Closed(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_json_log_is_one_object_a_line() -> None:
    stream = io.StringIO()
    write = output.json_log(stream, clock)
    write(READY)
    write(Entry("debug", "detail", "never shown"))
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert list(found)[:4] == ["timestamp", "level", "event", "message"]
    assert found["timestamp"] == "2026-01-02T03:04:05.678Z"
    assert found["models"] == ["tiny"]


def test_pretty_log_has_no_colour_off_a_terminal_and_breaks_no_token() -> None:
    stream = io.StringIO()
    write = output.pretty_log(stream, clock)
    write(Entry("warning", "x", "careful [bold]not markup[/bold]"))
    write(READY)
    write(Entry("debug", "detail", "never shown"))
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "careful [bold]not markup[/bold]" in shown
    assert READY.fields["invite"] in shown
    assert "meshnode run --join <invite>" in shown
    assert "detail" not in shown


def test_without_the_mesh_key_no_invite_is_shown() -> None:
    stream = io.StringIO()
    output.pretty_log(stream, clock)(
        Entry("info", "ready", "ready", {**READY.fields, "invite": None, "models": []})
    )
    assert "Invite" not in stream.getvalue()
    assert "none of its own" in stream.getvalue()


def test_model_that_waits_is_not_left_out_of_the_welcome() -> None:
    stream = io.StringIO()
    fields = {**READY.fields, "models": [], "waiting": ["big"]}
    output.pretty_log(stream, clock)(Entry("info", "ready", "ready", fields))
    assert "Models   big (waits for other nodes)" in stream.getvalue()


@pytest.mark.parametrize("form", [output.json_log, output.pretty_log])
def test_reader_that_left_does_not_end_the_node(form: object) -> None:
    form(Closed(), clock)(READY)  # type: ignore[operator]


def test_table_is_as_wide_as_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "VALUE"), [["a" * 90, "[b]"], ["c", "d"]])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.split() == ["NAME", "VALUE"]
    assert second.split() == ["a" * 90, "[b]"]


def test_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.error("two\nlines " + "x" * 200)
    assert capsys.readouterr().err == "Error: two lines " + "x" * 200 + "\n"


def test_strangers_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "bob\x1b]0;owned\x07\nFAKE \u202e"
    stream = io.StringIO()
    output.pretty_log(stream, clock)(Entry("info", "x", f"{evil} serves tiny"))
    output.table(("NAME",), [[evil]])
    output.line(evil)
    for shown in (stream.getvalue(), capsys.readouterr().out):
        assert "\x1b" not in shown
        assert "\nFAKE" not in shown
        assert "bob\\x1b]0;owned\\x07\\nFAKE" in shown


class Stuck(io.StringIO):
    """A terminal on which somebody pressed ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def write(self, text: str) -> int:
        self.go.wait(10)
        return super().write(text)


def test_stuck_terminal_holds_nobody_up() -> None:
    stuck = Stuck()
    sink = output.Sink(stuck)
    for number in range(output.QUEUED + 10):
        sink.write(f"{number}\n")
    stuck.go.set()
    sink.close()
    assert stuck.getvalue().startswith("0\n1\n2\n")


def test_sink_writes_all_before_it_closes() -> None:
    stream = io.StringIO()
    sink = output.Sink(stream)
    sink.write("a")
    sink.write("b")
    sink.close()
    assert stream.getvalue() == "ab"


def test_output_that_was_closed_takes_all_and_says_nothing() -> None:
    sink = output.Sink(None)
    sink.write("into the void")
    assert not sink.isatty()
    sink.close()


def test_character_that_the_terminal_lacks_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as stream:
        sink = output.Sink(stream)
        sink.write("caf\u00e9\n")
        sink.close()
    assert path.read_text() == "caf\\xe9\n"


def test_notes_go_beside_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("keep \x1b[2J this " + "word " * 40)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("keep \\x1b[2J this word")
    assert said.err.count("\n") == 1


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with output.progress() as show:
        show("loading 10%")
        show("done\n")
    assert "\n" not in screen.getvalue()
    assert screen.getvalue().startswith("\rloading 10%\rdone")
    assert screen.getvalue().endswith("\r")


def test_progress_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress() as show:
        show("loading")
    assert capsys.readouterr().err == ""


def test_dates_are_short() -> None:
    assert output.date(None) == "-"
    assert len(output.date(0)) == len("1970-01-01 00:00")
