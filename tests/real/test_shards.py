"""A mixture of experts on two nodes: neither can hold it whole, and one does not have its file."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from p2p_mesh.core.experts.layout import layout
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking, encode_ranking, file_name
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import MANIFEST, METADATA, PIECES
from p2p_mesh.core.records import ModelFile
from p2p_mesh.serve.backend import Load
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.models import write_moe
from tests.real.shared import tight

EXPERTS, KEPT, CONTEXT = 48, 32, 256
FLOOR = "0.6"
WAYS = ("--shards", "--min-mass", FLOOR, "--ctx", str(CONTEXT), "--parallel", "2", "--threads", "1")


@pytest.fixture
def moe(tmp_path: Path) -> ModelFile:
    return write_moe(tmp_path / "moe.gguf", experts=EXPERTS, feed=512, endless=True)


def ranked(model: ModelFile) -> bytes:
    """A ranking by which a third of the experts take most of the routing."""
    header = read_source(Path(model.path)).header
    found = layout(header)
    assert found is not None
    counts = tuple(900 if expert % 3 == 0 else 100 for expert in range(EXPERTS))
    layers = tuple(
        LayerRanking(layer=number, counts=counts, masses=tuple(map(float, counts)))
        for number in found.numbers
    )
    digest = Digest(hashlib.sha256(Path(model.path).read_bytes()).hexdigest())
    return encode_ranking(
        Ranking(model=digest, tokens=1000, experts=EXPERTS, used=found.used, layers=layers)
    )


def stub(model: ModelFile, folder: Path) -> Path:
    """The package of a model, without the weights of its layers."""
    packages = Packages(folder / "packages", Digests(folder / "digests.json"))
    package = packages.open(Path(model.path), Job())
    made = folder / "moe"
    metadata = package.reader(METADATA)(0, package.manifest.metadata.artifact_bytes)
    for name, data in {MANIFEST: package.manifest_bytes, PIECES: package.pieces_bytes,
                       METADATA: metadata}.items():  # fmt: skip
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(data)
    return made


@asynccontextmanager
async def mesh(folder: Path, model: ModelFile) -> AsyncIterator[tuple[NodeProcess, NodeProcess]]:
    """One that has the file and a ranking of its experts, and one that has neither."""
    memory = "--max-memory", tight(Load(model, context=CONTEXT, slots=2), (KEPT + 6) / EXPERTS)
    caches = {name: {"XDG_CACHE_HOME": str(folder / name / "cache")} for name in "ab"}
    kept = folder / "a" / "cache" / "meshnode" / "rankings"
    await trio.Path(kept).mkdir(parents=True)
    data = await trio.to_thread.run_sync(ranked, model)
    digest = hashlib.sha256(await trio.Path(model.path).read_bytes()).hexdigest()
    await trio.Path(kept / file_name(Digest(digest))).write_bytes(data)
    other = await trio.to_thread.run_sync(stub, model, folder / "b")
    async with start_node(
        folder / "a", "--name", "a", "--model", model.path, *WAYS, *memory, environment=caches["a"]
    ) as first:
        invite = (await first.wait("ready"))["invite"]
        async with start_node(
            folder / "b", "--name", "b", "--model", str(other), "--join", invite, *WAYS, *memory,
            environment=caches["b"],
        ) as second:  # fmt: skip
            yield first, second


async def ask(node: NodeProcess, **more: Any) -> httpx.Response:
    question = {"model": "moe", "messages": [{"role": "user", "content": "hello"}],
                "temperature": 0, "max_tokens": 12, **more}  # fmt: skip
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.post(f"{node.url()}/v1/chat/completions", json=question)


async def models(node: NodeProcess) -> Mapping[str, Any]:
    async with httpx.AsyncClient(timeout=30) as client:
        found = (await client.get(f"{node.url()}/v1/models")).json()["data"]
    return next(one for one in found if one["id"] == "moe")


async def test_two_nodes_serve_what_neither_holds_and_one_goes_on_alone(
    tmp_path: Path, moe: ModelFile
) -> None:
    async with mesh(tmp_path, moe) as (first, second):
        for node in (first, second):
            await node.wait("model_ready", 60)
            note = (await node.wait("model_note"))["note"]
            assert note.startswith("expert shard"), note
            assert f"{KEPT} of {EXPERTS} experts" in note
        for node in (first, second):
            answered = await ask(node)
            assert answered.status_code == 200, answered.text
            assert answered.json()["choices"][0]["message"]["content"]
        about = await both(first)
        assert float(FLOOR) <= about["routing_mass"] < 1
        fetched = [one async for one in _files(tmp_path / "b")]
        assert fetched, "a shard was built of what was fetched"
        await second.stop(signal.SIGKILL)
        answered = await ask(first)
        assert answered.status_code == 200, answered.text


async def both(node: NodeProcess) -> Mapping[str, Any]:
    """What it says of the model once it knows of both shards."""
    with trio.fail_after(30):
        while True:
            about: Mapping[str, Any] = (await models(node))["meshnode"]
            if about["shards"] == 2:
                return about
            await trio.sleep(0.1)


async def _files(folder: Path) -> AsyncIterator[Path]:
    for path in await trio.Path(folder).rglob("shard-*.gguf"):
        yield Path(path)
