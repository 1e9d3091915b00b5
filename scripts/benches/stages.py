"""Real nodes that serve one model: as one engine, or in two stages, near or far from each other."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import msgspec
import psutil
import trio
from load import Server, complete, completion
from peer import Terms

from p2p_mesh import state
from p2p_mesh.core.invite import make_invite, read_token
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.stages import Stage, Topology
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.relay import open_relay

LOADING = 300.0
"""Seconds that a model has to be served; the second stage fetches its part meanwhile."""
PINGS = 41
"""Of which the median is taken."""
PLAIN = ("--no-speculation",)
"""Nothing is guessed: a token is a step."""
_SEED = bytes(range(32))
"""Of the invite to come in through a relay; the mesh lives as long as a bench."""


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
    folder: Path, terms: Terms, *flags: str, cuts: Sequence[int], delay: float | None = None
) -> AsyncIterator[Split]:
    """The nodes of the later stages are there first, and the one that answers joins them: through
    a relay, where there is a delay in each direction. They find nothing in a cache. `cuts` are the
    layers at which stages begin, and the number of all.
    """
    # Engines that reached each other would not go through the relay.
    near = ("--p2p-host", "127.0.0.1", *(() if delay is None else ("--no-direct",)))
    home = {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=folder)}
    names = [f"stage-{number}" for number in range(len(cuts) - 1)]
    plan = await _plan(folder, terms.model, cuts, names)
    async with AsyncExitStack() as stack:

        async def start(name: str, *more: str) -> NodeProcess:
            node = start_node(_data_dir(folder), "--name", name, *near, *more, environment=home)
            return await stack.enter_async_context(node)

        threads = ("--threads", str(terms.threads))
        founder = await start(names[1], *threads)
        invite = (await founder.wait("ready", LOADING))["invite"]
        others = [await start(name, "--join", invite, *threads) for name in names[2:]]
        for node in others:
            await node.wait("ready", LOADING)
        way = await stack.enter_async_context(_cable(founder, invite, delay))
        serving = (*_serving(terms), "--stages", str(plan), *(flags or PLAIN))
        first = await start(names[0], "--join", way, *serving)
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


@asynccontextmanager
async def _cable(node: NodeProcess, invite: str, delay: float | None) -> AsyncIterator[str]:
    """An invite of the node's mesh; with a delay, one that leads through a relay."""
    if delay is None:
        yield invite
        return
    (seed,) = read_token(invite).invite.seeds
    _, ip, _host, tcp, port, p2p, peer = seed.split("/")
    key = state.mesh_key(node.data_dir)
    assert key is not None
    async with open_relay(int(port), delay=delay) as far:
        way = f"/{ip}/127.0.0.1/{tcp}/{far}/{p2p}/{peer}"
        yield make_invite(key, _SEED, name="bench", seeds=(way,))


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


async def round_trip(delay: float, _: Random) -> float:
    """Seconds, of one byte through a relay and back."""
    async with trio.open_nursery() as nursery:
        echo = partial(trio.serve_tcp, _echo, 0, host="127.0.0.1")
        (listener,) = await nursery.start(echo)
        port = int(listener.socket.getsockname()[1])
        async with open_relay(port, delay=delay) as far:
            stream = await trio.open_tcp_stream("127.0.0.1", far)
            found = [await _ping(stream) for _ in range(PINGS)]
            await stream.aclose()
        nursery.cancel_scope.cancel()
    return statistics.median(found[1:])  # the first one has to connect


async def _ping(stream: trio.SocketStream) -> float:
    begun = trio.current_time()
    await stream.send_all(b"?")
    await stream.receive_some(1)
    return trio.current_time() - begun


async def _echo(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async for data in stream:
            await stream.send_all(data)
