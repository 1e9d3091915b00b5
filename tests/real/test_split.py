"""A model in stages on three nodes: real nodes, real workers, real streams between them."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
import trio
from meshnode_skippy.parts import header_of

from p2p_mesh.core import families
from p2p_mesh.core.costs import stage_model
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.events import post_stream
from p2p_mesh.testing.models import Shape, write_model

SHAPE = Shape(layers=9, width=256, heads=8, kv_heads=4, feed=768, context=1024)
CONTEXT, SLOTS = 512, 10
STRICT = ("--deterministic", "--threads", "1", "--ctx", str(CONTEXT), "--parallel", str(SLOTS))
STREAMS, LENGTH = 10, 40


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    return Path(write_model(path, shape=SHAPE, endless=True).path)


@pytest.fixture
async def ref(deep: Path, tmp_path: Path) -> PackageRef:
    packages = Packages(tmp_path / "packages", Digests(tmp_path / "digests.json"))
    return (await packages.opened(deep)).ref


def question(number: int) -> dict[str, Any]:
    return {
        "model": "deep", "messages": [{"role": "user", "content": f"hello {number}"}],
        "temperature": 0, "max_tokens": LENGTH,
    }  # fmt: skip


class Streams:
    """Answers that are under way, and their texts."""

    def __init__(self, node: NodeProcess) -> None:
        self._node = node
        self.texts = [""] * STREAMS
        self.errors: list[Any] = []

    async def run(self, number: int) -> None:
        url = f"{self._node.url()}/v1/chat/completions"
        async with post_stream(url, question(number)) as events:
            while (event := await events.next()) is not None:
                if "error" in event:
                    self.errors.append(event["error"])
                for choice in event.get("choices", ()):
                    self.texts[number] += choice["delta"].get("content") or ""

    async def begun(self) -> None:
        while not all(self.texts):
            await trio.sleep(0.01)


@asynccontextmanager
async def streams(node: NodeProcess) -> AsyncIterator[Streams]:
    """All of them, until they have ended."""
    found = Streams(node)
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for number in range(STREAMS):
                nursery.start_soon(found.run, number)
            yield found


async def whole(node: NodeProcess) -> list[str]:
    async with streams(node) as found:
        pass
    assert not found.errors
    return found.texts


def workers(node: NodeProcess) -> list[int]:
    """Of the stages that it holds."""
    name = "meshnode_skippy.worker"
    return [pid for pid in node.engines() if name in psutil.Process(pid).cmdline()]


def pinned(ref: PackageRef, file: Path) -> tuple[str, ...]:
    """Three layers for each of three nodes, by their names."""
    stages = tuple(
        Stage(node=PeerId(name), layer_start=start, layer_end=start + 3)
        for name, start in (("a", 0), ("b", 3), ("c", 6))
    )
    topology = Topology(model="deep", manifest_sha256=ref.manifest, stages=stages)
    file.write_bytes(msgspec.json.encode(topology))
    return "--stages", str(file)


@asynccontextmanager
async def mesh(
    folder: Path, model: Path, *more: str, names: str = "bc", others: tuple[str, ...] = ()
) -> AsyncIterator[list[NodeProcess]]:
    """The node that coordinates, and those that hold the other stages."""
    async with AsyncExitStack() as stack:

        async def node(name: str, *arguments: str) -> NodeProcess:
            return await stack.enter_async_context(
                start_node(folder / name, "--name", name, *arguments)
            )

        first = await node("a", "--model", str(model), *STRICT, *more)
        invite = (await first.wait("ready", 60))["invite"]
        found = [first]
        shelf = trio.Path(folder / "empty")  # so that they serve no bundled model
        await shelf.mkdir()
        holding = ("--join", invite, "--standby", str(shelf), *others)
        found += [await node(name, *holding) for name in names]
        for one in found[1:]:
            await one.wait("ready", 60)
        await first.wait("model_ready", 60)
        yield found


async def test_three_nodes_write_what_one_writes_and_a_lost_worker_costs_no_text(
    tmp_path: Path, deep: Path, ref: PackageRef
) -> None:
    async with start_node(tmp_path / "solo", "--model", str(deep), *STRICT) as solo:
        await solo.wait("model_ready", 60)
        right = await whole(solo)
    assert len(set(right)) > 1
    async with mesh(tmp_path, deep, *pinned(ref, tmp_path / "plan.json")) as (first, second, _):
        assert await whole(first) == right
        async with streams(first) as found:
            await found.begun()
            (worker,) = workers(second)
            os.kill(worker, signal.SIGKILL)
        assert found.errors == []
        assert found.texts == right


async def tight(deep: Path, folder: Path) -> str:
    """Gigabytes that hold four layers of ten slots, and not five: nine layers need three nodes."""
    package = await Packages(folder / "packages", Digests(folder / "digests.json")).opened(deep)
    header = header_of(deep)
    model = stage_model(
        package.manifest, header, families.study(header), sha256=package.ref.manifest,
        context=CONTEXT, slots=SLOTS,
    )  # fmt: skip
    four = max(model.need(start, start + 4) for start in range(6))
    five = min(model.need(start, start + 5) for start in range(5))
    assert four < five
    return str((four + five) / 2e9)


async def test_a_lost_node_is_replaced_and_then_nobody_can(tmp_path: Path, deep: Path) -> None:
    memory = ("--max-memory", await tight(deep, tmp_path))
    async with mesh(tmp_path, deep, "--split", *memory, names="bcd", others=memory) as (
        first,
        *others,
    ):
        right = await whole(first)
        middle, last, spare = sorted(others, key=lambda node: len(workers(node)), reverse=True)
        assert not workers(spare)
        async with streams(first) as found:
            await found.begun()
            await middle.stop(signal.SIGKILL)
        assert found.errors == []
        assert found.texts == right
        await first.wait("stage_lost")
        await first.wait("stages_joined")
        before = len(first.log)
        await last.stop(signal.SIGKILL)
        await first.wait("engine_died")
        await first.wait("model_waits", after=before)
        async with httpx.AsyncClient(timeout=30) as client:
            refused = await client.post(f"{first.url()}/v1/chat/completions", json=question(0))
        assert refused.status_code == 503
        assert "nodes" in refused.json()["error"]["message"]
