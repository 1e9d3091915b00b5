"""A model is measured in a process of its own, whose end is an error and nothing more."""

from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_expert_shards.counter import count, ranking_of
from meshnode_expert_shards.frames import Count, Counted
from msgspec.structs import replace

from p2p_mesh.core.experts.layout import Layer, Layout, Sliced
from p2p_mesh.core.experts.ranking import LayerRanking
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import ChatPrompt, TextPrompt
from p2p_mesh.errors import EngineDied, ModelError
from p2p_mesh.testing.models import write_model, write_moe

MODEL = Digest("ab" * 32)
COMMAND = Count(
    name="moe", path="", family="qwen3moe", experts=16, tokens=128, context=64, threads=1,
    prompts=(
        TextPrompt(text="The harbour had been silting up for as long as anyone could remember."),
        ChatPrompt(messages=({"role": "user", "content": "Why is the sky blue?"},)),
    ),
)  # fmt: skip


def nothing(_: str, __: float) -> None:
    """Shows nothing."""


async def test_it_counts_what_the_model_reads_and_writes(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", endless=True)
    shown: list[tuple[str, float]] = []
    command = replace(COMMAND, path=str(tmp_path / "moe.gguf"))
    found = await count(command, progress=lambda what, share: shown.append((what, share)))
    assert found.read + found.written == 128
    assert found.written >= 32
    assert [one.layer for one in found.layers] == [0, 1]
    assert all(sum(one.counts) == 4 * 128 for one in found.layers)
    assert {what for what, _ in shown} == {"Loading", "Counting"}
    assert shown[-1] == ("Counting", 1.0)


async def test_a_model_at_fault_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "dense.gguf")
    with pytest.raises(ModelError, match="moe does not show what its routers choose"):
        await count(replace(COMMAND, path=str(tmp_path / "dense.gguf")), progress=nothing)


async def test_a_file_that_kills_its_process_is_an_error(tmp_path: Path) -> None:
    write_model(tmp_path / "wide.gguf", wide=True)
    with pytest.raises(EngineDied, match="the engine of moe was killed by"):
        await count(replace(COMMAND, path=str(tmp_path / "wide.gguf")), progress=nothing)


def laid_out(*numbers: int) -> Layout:
    weights = (Sliced("any", 0, 1),)
    return Layout(2, 1, tuple(Layer(number, 1, weights) for number in numbers))


COUNTED = Counted(
    read=2, written=1, layers=(LayerRanking(layer=3, counts=(1, 2), masses=(1.0, 2.0)),)
)


def test_a_layer_that_was_not_computed_has_counted_nothing() -> None:
    ranking = ranking_of(COUNTED, MODEL, laid_out(3, 4))
    assert (ranking.model, ranking.tokens, ranking.used) == (MODEL, 3, 1)
    assert [one.counts for one in ranking.layers] == [(1, 2), (0, 0)]


def test_more_than_every_token_can_choose_is_refused() -> None:
    layer = LayerRanking(layer=3, counts=(1, 4), masses=(1.0, 2.0))
    with pytest.raises(ModelError, match="layer 3 cannot be: 4"):
        ranking_of(replace(COUNTED, layers=(layer,)), MODEL, laid_out(3))


def test_what_was_counted_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"layers \[3\] chose experts that the file does not"):
        ranking_of(COUNTED, MODEL, laid_out(4))
