"""What passes between the node and a flash engine, in both directions."""

from __future__ import annotations

import pytest
from meshnode_flash_moe.told import Open, Told, commands, reports
from meshnode_llama_cpp import frames

OPENED = frames.Open(name="m", path="/m.gguf", context=64, slots=1, threads=1)
TOLD = Told(
    hit_rate=0.5, disk_bytes_per_token=1e6, disk_bandwidth=1e9, disk_wait=0.25,
    expert_bytes_cached=7, expert_bytes=9, tokens=3,
)  # fmt: skip


def test_commands_of_both_kinds_arrive() -> None:
    sent = [Open(OPENED, memory=10, experts=4), frames.Cancel(3)]
    assert list(commands().feed(b"".join(map(frames.encode, sent)))) == sent


def test_reports_of_both_kinds_arrive() -> None:
    sent = [TOLD, frames.Progress(0.5), frames.Failed("no")]
    assert list(reports().feed(b"".join(map(frames.encode, sent)))) == sent


def test_a_plain_opening_is_no_command_of_a_flash_engine() -> None:
    with pytest.raises(ValueError, match="not a record"):
        list(commands().feed(frames.encode(OPENED)))
