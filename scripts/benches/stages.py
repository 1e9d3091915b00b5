"""Real nodes that serve one model: as one engine, or in two stages, near or far from each other."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import psutil
import trio
from load import Server, complete, completion
from peer import Terms

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.cable import Cable
from p2p_mesh.testing.cluster import NodeProcess, start_node

LOADING = 300.0
"""Seconds that a model has to be served; the second stage fetches its part meanwhile."""
PLAIN = ("--no-speculation",)
"""Nothing is guessed: a token is a step."""


@dataclass(frozen=True, slots=True)
class Split(Server):
    """The node that answers, with those beside it that have a stage each."""

    beside: tuple[int, ...]

    def seconds(self) -> float:
        """CPU of all, with their engines."""
        return Server.seconds(self) + sum(map(_seconds, self.beside))


def _seconds(pid: int) -> float:
    node = psutil.Process(pid)
    spent = [one.cpu_times() for one in (node, *node.children(recursive=True))]
    return float(sum(one.user + one.system for one in spent))


@asynccontextmanager
async def solo_node(folder: Path, terms: Terms, *flags: str) -> AsyncIterator[Server]:
    async with start_node(_data_dir(folder), *_serving(terms), *(flags or PLAIN)) as node:
        await _served(node)
        server = Server(_port(node), terms.model.stem, node.pid)
        await _warm(server, terms)
        yield server


@asynccontextmanager
async def split_nodes(
    folder: Path, terms: Terms, *flags: str, cuts: Sequence[int], cable: Cable | None = None
) -> AsyncIterator[Split]:
    """The nodes of the later stages are there first, and the one that answers joins them; they are
    at the far end of the cable, where there is one. They find nothing in a cache. `cuts` are the
    layers at which stages begin, and the number of all.
    """
    near, far = ("127.0.0.1", "127.0.0.1") if cable is None else (cable.near, cable.far)
    prefix = () if cable is None else cable.prefix
    home = {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    names = [f"stage-{number}" for number in range(len(cuts) - 1)]
    plan = await _plan(folder, terms.model, cuts, names)
    async with AsyncExitStack() as stack:

        async def start(name: str, *more: str, prefix: Sequence[str] = ()) -> NodeProcess:
            flags = ("--name", name, *more)
            node = start_node(_data_dir(folder), *flags, environment=home, prefix=prefix)
            return await stack.enter_async_context(node)

        there = ("--p2p-host", far, "--threads", str(terms.threads))
        founder = await start(names[1], *there, prefix=prefix)
        invite = (await founder.wait("ready", LOADING))["invite"]
        others = [await start(name, "--join", invite, *there, prefix=prefix) for name in names[2:]]
        for node in others:
            await node.wait("ready", LOADING)
        serving = (*_serving(terms), "--stages", str(plan), *(flags or PLAIN))
        first = await start(names[0], "--join", invite, "--p2p-host", near, *serving)
        await _served(first)
        beside = tuple(node.pid for node in (founder, *others))
        split = Split(_port(first), terms.model.stem, first.pid, beside)
        await _warm(split, terms)
        yield split


async def _plan(folder: Path, model: Path, cuts: Sequence[int], names: Sequence[str]) -> Path:
    """A file that pins the stages."""
    package = await Packages(folder / "packages", Digests(folder / "digests.json")).opened(model)
    ranges = zip(names, pairwise(cuts), strict=True)
    stages = tuple(Stage(node=PeerId(name), layer_start=start, layer_end=end)
                   for name, (start, end) in ranges)  # fmt: skip
    file = folder / f"{model.stem}-plan.json"
    pinned = Topology(model=model.stem, manifest_sha256=package.ref.manifest, stages=stages)
    file.write_bytes(msgspec.json.encode(pinned))
    return file


async def _served(node: NodeProcess) -> None:
    """Waits for the model. RuntimeError, in the node's words, where it cannot be served."""

    async def failed() -> None:
        line = await node.wait("model_failed", LOADING)
        raise RuntimeError(str(line["reason"]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(failed)
        await node.wait("model_ready", LOADING)
        nursery.cancel_scope.cancel()


def _data_dir(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def _serving(terms: Terms) -> tuple[str, ...]:
    return (
        "--model", str(terms.model), "--ctx", str(terms.context),
        "--parallel", str(terms.slots), "--threads", str(terms.threads),
    )  # fmt: skip


def _port(node: NodeProcess) -> int:
    return int(node.url().rpartition(":")[2])


async def _warm(server: Server, terms: Terms) -> None:
    """Every slot answers once."""
    await complete(server, [completion(Random(slot), 64, 4) for slot in range(terms.slots)])
