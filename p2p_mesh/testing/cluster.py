"""Real nodes: `meshnode run` as processes of their own, each on a data directory of its own.

    async with start_node(tmp_path / "a") as node:
        ready = await node.wait("ready")

A node gets free ports, logs JSON, and is gone when the context ends, whatever happened.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import trio

GRACE = 5.0
"""Seconds that a node has to end after SIGTERM, before it is killed."""


class NodeProcess:
    """A running `meshnode run`, and what it has logged."""

    def __init__(self, process: trio.Process, data_dir: Path) -> None:
        self.process = process
        self.data_dir = data_dir
        self.log: list[dict[str, Any]] = []
        self.text = ""
        """What it wrote that is no JSON: errors."""
        self._more = trio.Event()
        self._ended = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, port: str = "api") -> str:
        """The base URL of the API, or of the `console`."""
        node = json.loads((self.data_dir / "node.json").read_text())
        return str(node[f"{port}_url"]).removesuffix("/v1")

    def engines(self) -> list[int]:
        """The process ids of its engines."""
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def signal_all(self, number: int) -> None:
        """Sends a signal to the node and to its engines, those of them that still are."""
        for pid in (self.pid, *self.engines()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kills the node alone. Its engines are to see to that themselves, but a stopped one sees
        nothing.
        """
        engines = self.engines()
        self.process.kill()
        for pid in engines:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def wait(self, event: str, seconds: float = 30.0, *, after: int = 0) -> dict[str, Any]:
        """The first log line of that event, from line number `after` on."""
        with trio.fail_after(seconds):
            while True:
                for line in self.log[after:]:
                    if line["event"] == event:
                        return line
                assert not self._ended, f"the node ended without {event}: {self.log} {self.text}"
                await self._more.wait()

    async def stop(self, number: int) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(signal.Signals(number))
        return await self.process.wait()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        held = b""
        async for chunk in self.process.stdout:
            *lines, held = (held + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode())
            self._wake()
        self._take(held.decode())
        self._ended = True
        self._wake()

    def _take(self, line: str) -> None:
        if line.startswith("{"):
            self.log.append(json.loads(line))
        elif line:
            self.text += line + "\n"

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()


@asynccontextmanager
async def start_node(
    data_dir: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    stdin: bytes = b"",
) -> AsyncIterator[NodeProcess]:
    """`meshnode run` with these arguments. `prefix` stands before the command, such as
    `ip netns exec NAME`.
    """
    command = [
        *prefix, sys.executable, "-m", "p2p_mesh", "run", "--data-dir", str(data_dir),
        "--log-format", "json", *_unless(arguments, "--port", "0"),
        *_unless(arguments, "--console", "0"), *arguments,
    ]  # fmt: skip
    process = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    node = NodeProcess(process, data_dir)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node._read)
        try:
            assert process.stdin is not None
            async with process.stdin:
                await process.stdin.send_all(stdin)
            yield node
        finally:
            node.signal_all(signal.SIGCONT)  # a stopped process would not end
            with trio.CancelScope(shield=True):
                await _end(process)
            nursery.cancel_scope.cancel()


def _unless(arguments: Sequence[str], flag: str, value: str) -> list[str]:
    return [] if flag in arguments else [flag, value]


async def _end(process: trio.Process) -> None:
    if process.poll() is None:
        process.terminate()
        with trio.move_on_after(GRACE):
            await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
