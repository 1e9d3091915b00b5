"""The mesh that disasters come over: two nodes that are asked and serve nothing, three that serve
one model, each on a machine of its own. A serving node that ends is started again.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio
from disasters.clients import Door
from disasters.verdict import Line

from p2p_mesh.testing.cluster import NodeProcess, start_node
from p2p_mesh.testing.machines import Machine, open_machines

ASKED = ("ask1", "ask2")
SERVING = ("serve1", "serve2", "serve3")
PORT = 9337
KEY = "chaos"
LOADING = 90.0
AWAY = 2.0
"""Seconds between the end of a serving node and its next life."""

RETURN = 60.0
"""Seconds within which a node that is back must be known again to those that ask."""

SLOTS = 48
CONTEXT = 1536

Start = Callable[[], AbstractAsyncContextManager[NodeProcess]]


class Server:
    """A serving node, through all its lives."""

    def __init__(self, name: str, machine: Machine, start: Start) -> None:
        self.name, self.machine = name, machine
        self.is_struck = False
        """Whether a disaster is over it, or it has not come back from one."""
        self.node: NodeProcess
        self.peer = ""
        self.log: list[Line] = []
        self._start = start
        self._ready = trio.Event()

    async def live(self) -> None:
        while True:
            async with self._start() as node:
                node.log = self.log  # one log for all lives
                ready = await node.wait("ready", LOADING, after=len(self.log))
                self.node, self.peer = node, ready["peer_id"]
                self._ready.set()
                await node.process.wait()
                self._ready = trio.Event()
            await trio.sleep(AWAY)

    async def wait_ready(self) -> None:
        with trio.fail_after(LOADING + AWAY):
            await self._ready.wait()

    async def wait_next_life(self) -> None:
        """Of a node that was told to end, or was killed."""
        with trio.fail_after(LOADING):
            await self.node.process.wait()
        await trio.sleep(AWAY / 2)  # `live` has seen it by now
        await self.wait_ready()

    async def wait_engine(self, after: int) -> None:
        with trio.fail_after(LOADING):
            await self.node.wait("model_ready", LOADING, after=after)

    def kill(self) -> None:
        self.node.kill()

    def kill_engine(self) -> None:
        for pid in self.node.engines():
            os.kill(pid, signal.SIGKILL)


@dataclass(slots=True)
class Asked:
    """A node that serves nothing, and that nothing happens to."""

    node: NodeProcess
    door: Door
    console: int

    async def knows(self, server: Server) -> bool:
        """Whether it would ask that server for its model."""
        try:
            status = await _get(self.door, self.console, "/api/status")
        except (OSError, trio.BrokenResourceError, ValueError):
            return False  # on full cores it may have no time for that now
        return any(
            one["peer_id"] == server.peer and one["models"] and one["state"] == "connected"
            for one in status["peers"]
        )


@dataclass(slots=True)
class Town:
    asked: list[Asked]
    servers: list[Server]

    @property
    def doors(self) -> list[Door]:
        return [one.door for one in self.asked]

    @property
    def logs(self) -> dict[str, list[Line]]:
        asked: dict[str, list[Line]] = {one.door.name: list(one.node.log) for one in self.asked}
        return asked | {one.name: one.log for one in self.servers}

    async def finds(self, server: Server) -> bool:
        """Waits until every node that asks has it again; False if that takes too long."""
        with trio.move_on_after(RETURN) as patience:
            for one in self.asked:
                while not await one.knows(server):  # noqa: ASYNC110 - another process tells nobody
                    await trio.sleep(0.3)
        return not patience.cancelled_caught


@asynccontextmanager
async def open_town(folder: Path, model: Path) -> AsyncIterator[Town]:
    """Five nodes, joined and ready. All of it is gone when the context ends."""
    async with (
        open_machines((*ASKED, *SERVING)) as machines,
        _asked(folder, machines["ask1"], "ask1") as first,
    ):
        invite = (await first.node.wait("ready", LOADING))["invite"]
        servers = [_server(folder, machines[one], one, model, invite) for one in SERVING]
        async with (
            _asked(folder, machines["ask2"], "ask2", "--join", invite) as second,
            _living(servers),
        ):
            town = Town([first, second], servers)
            for server in servers:
                await server.wait_ready()
                if not await town.finds(server):
                    raise RuntimeError(f"{server.name} is not found by the others")
            yield town


@asynccontextmanager
async def _living(servers: list[Server]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(server.live)
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _asked(folder: Path, machine: Machine, name: str, *more: str) -> AsyncIterator[Asked]:
    arguments = ("--name", name, "--client", "--listen", "--api-key", KEY, "--port", str(PORT))
    async with start_node(folder / name, *arguments, *more, prefix=machine.prefix) as node:
        await node.wait("ready", LOADING)
        console = int(node.url("console").rpartition(":")[2])
        yield Asked(node, Door(name, machine.address, PORT, KEY), console)


def _server(folder: Path, machine: Machine, name: str, model: Path, invite: str) -> Server:
    arguments = (
        "--name", name, "--model", str(model), "--join", invite, "--deterministic",
        "--threads", "1", "--parallel", str(SLOTS), "--ctx", str(CONTEXT),
    )  # fmt: skip
    return Server(
        name, machine, partial(start_node, folder / name, *arguments, prefix=machine.prefix)
    )


async def _get(door: Door, port: int, path: str) -> Any:
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {door.host}:{port}\r\n"
        f"Authorization: Bearer {door.key}\r\nConnection: close\r\n\r\n"
    )
    body = b""
    async with await trio.open_tcp_stream(door.host, port) as stream:
        await stream.send_all(request.encode())
        async for chunk in stream:
            body += chunk
    return json.loads(body.partition(b"\r\n\r\n")[2])
