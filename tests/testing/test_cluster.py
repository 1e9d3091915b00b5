"""What a node that is started for a test is told, and what befalls it; tests/real starts them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import trio

from p2p_mesh.testing.cluster import NodeProcess, _unless

WITH_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"])
print("up", flush=True)
child.wait()
"""


def test_ports_are_free_ones_unless_given() -> None:
    assert _unless(("--name", "x"), "--port", "0") == ["--port", "0"]
    assert _unless(("--port", "9337"), "--port", "0") == []


@asynccontextmanager
async def with_a_child() -> AsyncIterator[tuple[NodeProcess, psutil.Process]]:
    """A process and its child, in place of a node and its engine."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", WITH_A_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdout.receive_some()
        node = NodeProcess(process, Path())
        yield node, psutil.Process(node.engines()[0])
    finally:
        process.kill()
        await process.stdin.aclose()  # which ends the child
        await process.stdout.aclose()
        await process.wait()


async def wait_stopped(process: psutil.Process, stopped: bool) -> None:
    with trio.fail_after(10):
        while (process.status() == psutil.STATUS_STOPPED) != stopped:
            await trio.lowlevel.checkpoint()


async def test_signal_reaches_the_engines() -> None:
    async with with_a_child() as (node, engine):
        node.signal_all(signal.SIGSTOP)
        await wait_stopped(engine, True)
        await wait_stopped(psutil.Process(node.pid), True)
        node.signal_all(signal.SIGCONT)
        await wait_stopped(engine, False)


async def test_engine_of_a_killed_node_goes_on_by_itself() -> None:
    async with with_a_child() as (node, engine):
        node.signal_all(signal.SIGSTOP)
        await wait_stopped(engine, True)
        node.kill()
        assert await node.process.wait() == -signal.SIGKILL
        await wait_stopped(engine, False)


def test_dead_node_has_no_engines() -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    process.wait()
    assert NodeProcess(process, Path()).engines() == []
