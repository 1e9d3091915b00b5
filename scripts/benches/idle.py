"""Idle: what twenty nodes of one mesh take of the cores while nobody asks anything."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import psutil
import trio
from figures import Figure

from p2p_mesh.testing.cluster import NodeProcess, start_node

NODES = 20
STARTING = 120.0
SETTLE = 30.0
"""Seconds in which the nodes find each other, and what starting has cost is over."""


@dataclass(frozen=True, slots=True)
class Terms:
    nodes: int
    seconds: float


USUAL = Terms(NODES, 60.0)
QUICK = Terms(NODES, 15.0)


async def measure(terms: Terms = USUAL) -> list[Figure]:
    async with _mesh(terms.nodes) as nodes:
        print(f"{terms.nodes} nodes are up; they settle", file=sys.stderr, flush=True)
        await trio.sleep(SETTLE)
        before = [_spent(node) for node in nodes]
        start = trio.current_time()
        await trio.sleep(terms.seconds)
        seconds = trio.current_time() - start
        spent = [_spent(node) - then for node, then in zip(nodes, before, strict=True)]
        memory = [float(psutil.Process(node.pid).memory_info().rss) / 1e6 for node in nodes]
    shares = [100 * one / seconds for one in spent]
    return [
        Figure("idle_core_percent", mean(shares), "% of a core", "<", 1),
        Figure("idle_core_percent_worst", max(shares), "% of a core", "<", 1),
        Figure("idle_nodes", len(nodes), "nodes"),
        Figure("idle_rss_mb_worst", max(memory), "MB"),
    ]


@asynccontextmanager
async def _mesh(count: int) -> AsyncIterator[list[NodeProcess]]:
    """So many nodes that serve nothing; each joins by the invite of the first."""
    nodes: list[NodeProcess] = []
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder) / "nothing"
        nothing.mkdir()
        more: tuple[str, ...] = ("--standby", str(nothing))
        async with AsyncExitStack() as stack:
            for number in range(count):
                start = start_node(Path(folder) / str(number), "--name", f"idle{number}",
                                   "--p2p-host", "127.0.0.1", *more)  # fmt: skip
                nodes.append(await stack.enter_async_context(start))
                ready = await nodes[-1].wait("ready", STARTING)
                if number == 0:
                    more = ("--client", "--join", ready["invite"])
            yield nodes


def _spent(node: NodeProcess) -> float:
    """CPU seconds of a node so far."""
    times = psutil.Process(node.pid).cpu_times()
    return float(times.user + times.system)
