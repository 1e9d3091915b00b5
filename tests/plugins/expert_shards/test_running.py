"""The engine of a shard, seen from its node."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
from meshnode_expert_shards.parts import Parts
from meshnode_expert_shards.running import WeighingEngine, run_shard

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, ModelFile, Sampling, TextPrompt
from p2p_mesh.errors import HandedOver, ModelError
from p2p_mesh.serve.backend import Fit, Load
from tests.plugins.expert_shards.demo import QUESTIONS, Cut

ASKED = InferenceRequest(
    id=RequestId("1"), model=ModelId("demo"), prompt=TextPrompt(text=QUESTIONS[1]), max_tokens=4,
    sampling=Sampling(temperature=0.0), weigh=True,
)  # fmt: skip
PLAN = Fit(256, 1, 0)


def load(made: Cut, path: str | None = None) -> Load:
    file = made.shards[0]
    return Load(
        ModelFile(
            id=ModelId("demo"), path=path or str(file), size_bytes=file.stat().st_size,
            architecture="qwen3moe", context_length=2048, kv_bytes_per_token=1024,
        ),
        threads=1,
    )  # fmt: skip


async def answer(engine: WeighingEngine) -> list[Any]:
    async with engine.generate(ASKED) as deltas:
        return [delta async for delta in deltas]


async def test_engine_hands_over_by_those_who_take_part_and_leaves_no_process(halves: Cut) -> None:
    async with run_shard(load(halves), PLAN, halves.routers, halves.dealt) as engine:
        pid = engine.describe().pid
        with pytest.raises(HandedOver, match="the shard of b") as told:
            await answer(engine)
        assert told.value.param == "b"
        engine.deal(Parts(0, ("a",), halves.dealt.experts[:1]))
        assert (await answer(engine))[-1].usage is not None
    assert not psutil.pid_exists(pid or 0)


async def test_bad_file_is_refused_in_words(halves: Cut) -> None:
    with pytest.raises(ModelError):
        async with run_shard(load(halves, "none.gguf"), PLAN, halves.routers, halves.dealt):
            pass
