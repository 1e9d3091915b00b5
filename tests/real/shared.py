"""Nodes that several tests share, and what keeps them and the others apart from the user's."""

import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from meshnode_expert_shards.memory import seat

from p2p_mesh.serve.backend import Fit, Load
from p2p_mesh.settings import ENVIRONMENT
from p2p_mesh.testing.cluster import NodeProcess, start_node


def keep_apart(patch: pytest.MonkeyPatch, folder: Path, bytecode: Path) -> None:
    """Nothing of whoever runs the tests reaches the nodes, and nothing of theirs stays. Their
    bytecode is kept among them: each start would compile everything otherwise.
    """
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT):
            patch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        patch.setenv(name, str(folder / name))
    if sys.dont_write_bytecode:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(bytecode))


def tight(load: Load, experts: float) -> str:
    """Gigabytes in which a shard with so large a share of the experts fits, and not all of them."""

    def room(memory: int) -> int:
        found = seat(load, memory)
        return found.room if isinstance(found, Fit) else 0

    needed = load.model.expert_bytes * experts
    least = bisect_left(range(2**30), needed, key=room)
    assert needed <= room(least) < load.model.expert_bytes
    return str(least / 1e9)


@contextmanager
def running(
    folder: Path, bytecode: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[NodeProcess]:
    """A ready node that several tests share. It is tended from a thread, since each test has a
    loop of its own: a test reads the log of such a node, and does not wait for a new line.
    """
    tended: Future[tuple[NodeProcess, trio.lowlevel.TrioToken]] = Future()
    over = trio.Event()

    async def tend() -> None:
        async with start_node(folder / "node", *arguments, environment=environment) as node:
            await node.wait("ready", 60)
            tended.set_result((node, trio.lowlevel.current_trio_token()))
            await over.wait()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as thread:
        keep_apart(patch, folder, bytecode)
        run = thread.submit(trio.run, tend)
        either: list[Future[Any]] = [run, tended]
        wait(either, return_when=FIRST_COMPLETED)
        if run.done():
            run.result()
        patch.undo()
        node, token = tended.result()
        try:
            yield node
        finally:
            token.run_sync_soon(over.set)
        run.result()


def facts(node: NodeProcess) -> dict[str, Any]:
    """What a shared node said of itself when it was ready."""
    return next(line for line in node.log if line["event"] == "ready")
