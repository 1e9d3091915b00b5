from __future__ import annotations

import pytest
from meshnode_expert_shards.frames import Count, Counted, commands, reports
from meshnode_llama_cpp.frames import Failed, Progress, Ready, encode

from p2p_mesh.core.experts.ranking import LayerRanking
from p2p_mesh.core.records import ChatPrompt, TextPrompt

COUNT = Count(
    name="moe", path="/moe.gguf", family="qwen3moe", experts=16, tokens=100, context=64, threads=1,
    prompts=(TextPrompt(text="a"), ChatPrompt(messages=({"role": "user", "content": "b"},))),
)  # fmt: skip


def test_a_command_comes_as_it_was_sent() -> None:
    assert list(commands().feed(encode(COUNT))) == [COUNT]


def test_reports_come_as_they_were_sent() -> None:
    layer = LayerRanking(layer=1, counts=(1, 2), masses=(0.5, 1.5))
    sent = [Progress(0.5), Ready("", "cpu", ()), Failed("no"),
            Counted(read=2, written=1, layers=(layer,))]  # fmt: skip
    assert list(reports().feed(b"".join(map(encode, sent)))) == sent


def test_what_is_no_report_is_refused() -> None:
    with pytest.raises(ValueError, match="not a record"):
        list(reports().feed(encode(COUNT)))
