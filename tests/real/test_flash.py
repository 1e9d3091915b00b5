"""A model whose experts are read from the disk: a real node, real workers, a real file."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from meshnode_flash_moe.backend import FlashMoe
from meshnode_flash_moe.memory import least
from meshnode_llama_cpp.backend import LlamaCpp
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, ModelFile, Sampling, TextPrompt
from p2p_mesh.errors import EngineDied
from p2p_mesh.serve.backend import Engine, Load
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.memory import anonymous, cached, forget
from p2p_mesh.testing.mesh import NoMesh
from p2p_mesh.testing.models import Shape, write_moe

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="flash is for Linux")

SHAPE = Shape(layers=4, width=256, heads=4, kv_heads=2, context=1024)
CONTEXT, LENGTH = 512, 200
PROMPT = "the lighthouse of"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("models") / "flash.gguf"
    return write_moe(path, experts=32, used=2, feed=512, shape=SHAPE, endless=True)


@pytest.fixture
def model(written: ModelFile, tmp_path: Path) -> ModelFile:
    """A file of its own for each test, of which nothing is in memory."""
    path = Path(shutil.copy(written.path, tmp_path))
    forget(path)
    return replace(written, path=str(path))


def load(model: ModelFile, **more: Any) -> Load:
    return Load(model, context=CONTEXT, slots=1, threads=1, speculation=False, **more)


def little(model: ModelFile) -> int:
    """Bytes in which a part of the experts, 53 MB, find room."""
    return least(load(model), CONTEXT)


def flash(model: ModelFile) -> AbstractAsyncContextManager[Engine]:
    return FlashMoe().open(load(model, memory_limit=little(model)), NoMesh())


def ask(engine: Engine) -> Any:
    return engine.generate(
        InferenceRequest(
            id=RequestId("r"), model=ModelId("flash"), prompt=TextPrompt(text=PROMPT),
            sampling=Sampling(temperature=0), max_tokens=LENGTH,
        )
    )  # fmt: skip


async def text_of(engine: Engine) -> str:
    async with ask(engine) as deltas:
        return "".join([delta.text async for delta in deltas])


async def keep_asking(engine: Engine) -> None:
    while True:
        await text_of(engine)


class Memory:
    """The most that the engines of a node and the pages of a file took together."""

    def __init__(self, node: NodeProcess, file: Path) -> None:
        self._node, self._file = node, file
        self.most = 0

    async def watch(self) -> None:
        while True:
            taken = cached(self._file) + sum(map(anonymous, self._node.engines()))
            self.most = max(self.most, taken)
            await trio.sleep(0.1)


async def status(node: NodeProcess) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        (one,) = (await client.get(f"{node.url('console')}/api/status")).json()["models"]
        return dict(one)


async def measured(node: NodeProcess) -> dict[str, float]:
    """What the engine tells of itself once it has computed for a second."""
    with trio.fail_after(30):
        while not (found := (await status(node))["measures"]):
            await completion(node)
        return dict(found)


async def completion(node: NodeProcess) -> str:
    body = {"model": "flash", "prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0}
    async with httpx.AsyncClient(timeout=60) as client:
        response = await client.post(f"{node.url()}/v1/completions", json=body)
    return str(response.json()["choices"][0]["text"])


async def test_a_node_answers_as_the_whole_model_in_less_memory(
    model: ModelFile, tmp_path: Path
) -> None:
    arguments = ("--model", model.path, "--flash", "--max-memory", str(little(model) / 1e9),
                 "--ctx", str(CONTEXT), "--parallel", "1", "--threads", "1")  # fmt: skip
    async with start_node(tmp_path / "node", *arguments) as node, trio.open_nursery() as nursery:
        memory = Memory(node, Path(model.path))
        nursery.start_soon(memory.watch)
        await node.wait("model_ready", 60)
        answer = await completion(node)
        measures = await measured(node)
        nursery.cancel_scope.cancel()
    async with LlamaCpp().open(load(model), NoMesh()) as engine:
        assert answer == await text_of(engine)
    assert memory.most <= little(model)
    assert 0 < measures["expert_hit_rate"] < 1
    assert measures["disk_bytes_per_token"] > 0
    assert measures["expert_cache_bytes"] < measures["expert_bytes"] == model.expert_bytes


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("change", "why"), [(shorten, "has become shorter"), (Path.touch, "was changed")]
)
async def test_a_file_that_changes_ends_the_engine(model: ModelFile, change: Any, why: str) -> None:
    async with flash(model) as engine:
        change(Path(model.path))
        with trio.fail_after(20):
            with pytest.raises(EngineDied, match=why):
                await keep_asking(engine)
            assert why in await engine.wait_ended()
