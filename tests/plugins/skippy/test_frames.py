from __future__ import annotations

from pathlib import Path

from meshnode_llama_cpp.frames import Cancel, Progress, encode
from meshnode_skippy.frames import (
    Dial,
    Listen,
    Listening,
    Ping,
    Pong,
    Restart,
    Unlinked,
    commands,
    reports,
)

from tests.plugins.skippy import ring


def test_commands_and_reports_come_as_they_were_sent(tmp_path: Path) -> None:
    opens = ring.commands(tmp_path)
    sent = [*opens, Restart(3), Cancel(1), Ping(), Listen(b"k"), Dial(("::1",), 5, b"k")]
    assert list(commands().feed(b"".join(map(encode, sent)))) == sent
    told = [Progress(0.5), Listening(9), Pong(), Unlinked("gone")]
    assert list(reports().feed(b"".join(map(encode, told)))) == told


def test_first_and_last_are_known_by_their_number(tmp_path: Path) -> None:
    opens = ring.commands(tmp_path)
    assert [one.is_first for one in opens] == [True, False, False]
    assert [one.is_last for one in opens] == [False, False, True]
