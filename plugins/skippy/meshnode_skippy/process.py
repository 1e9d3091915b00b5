"""The worker of one stage, seen from its node: an engine process with a link to the ring beside.

What the first stage's worker answers, it answers as an engine of llama_cpp does. One that is
frozen, or hangs in a batch, never ends by itself: so each is asked every few seconds whether it
lives, which it answers between two batches, and one that does not is ended.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio
from meshnode_llama_cpp.engine import LlamaEngine
from meshnode_llama_cpp.process import start
from msgspec import Struct

from meshnode_skippy.frames import (
    Dial,
    Dialled,
    Listen,
    Listening,
    OpenStage,
    Ping,
    Pong,
    Restart,
    Unlinked,
    reports,
)
from p2p_mesh.core.silence import QUIET, Slack
from p2p_mesh.serve.backend import Fit

WORKER = "meshnode_skippy.worker"

LISTENED, DIALLED = 1.0, 4.0
"""Seconds that a worker has to listen, and to dial: it may be in the middle of a batch."""

PING_EVERY = 5.0
"""Seconds from one pong to the next ping."""

T = TypeVar("T")


class StageProcess(LlamaEngine):
    """A stage that is loaded. Made by `run_stage`."""

    link: socket.socket
    """Frames of the ring, each with its length in front."""
    unlinked: Callable[[str], None] = staticmethod(lambda reason: None)
    """Told when a direct link to or from another worker breaks."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more, reports=reports)
        self._replies: dict[type, Any] = {}
        self._replied = trio.Event()

    async def listen(self, key: bytes, host: str) -> int:
        """The port at which the worker of the stage before can reach this one, at an address of
        this machine (empty: at all of them); 0: at none.
        """
        found = await self._ask(Listen(key, host), Listening, LISTENED)
        return found.port if found else 0

    async def dial(self, hosts: Sequence[str], port: int, key: bytes) -> bool:
        """Whether the worker of the next stage was reached at one of the hosts. Else frames go
        through this node, as they do where there are no hosts.
        """
        found = await self._ask(Dial(tuple(hosts), port, key), Dialled, DIALLED)
        return found is not None and found.reached

    async def _ask(self, command: Struct, kind: type[T], seconds: float) -> T | None:
        self._replies.pop(kind, None)
        self._post(command)
        with trio.move_on_after(seconds):
            while kind not in self._replies:
                await self._replied.wait()
        found: T | None = self._replies.pop(kind, None)
        return found

    async def watch(self, slack: Slack) -> None:
        """Ends the worker when it does not say any longer that it lives. The next one then has
        more time: it may have been a batch that took long.
        """
        patience = QUIET * slack.times
        while await self._ask(Ping(), Pong, patience) is not None:  # noqa: ASYNC110 - it has none
            await trio.sleep(PING_EVERY)
        slack.ended(0)
        await self.end(f"the worker of {self._name} gave no sign of life for {patience:g} s")

    def _take(self, report: Any) -> None:
        match report:
            case Pong() | Listening() | Dialled():
                self._replies[type(report)] = report
                self._replied.set()
                self._replied = trio.Event()
            case Unlinked(reason):
                self.unlinked(reason)
            case _:
                super()._take(report)

    def restart(self, epoch: int) -> None:
        """The ring is up, or up again: the first stage begins what it was answering again."""
        self._post(Restart(epoch))

    async def end(self, reason: str) -> None:
        """Ends it, for that reason."""
        self._reason = self._reason or reason
        await self.close()


@asynccontextmanager
async def run_stage(
    command: OpenStage, *, progress: Callable[[float], None], worker: str = WORKER
) -> AsyncIterator[StageProcess]:
    """Starts a worker, loads the stage, and ends the worker when the context is left. Raises
    ModelError and EngineDied.
    """
    ours, theirs = socket.socketpair()
    with ours:
        process, stream = await start(worker, theirs)
        plan = Fit(command.context, command.slots, 0)
        stage = StageProcess(command.name, plan, process, stream, progress=progress)
        ours.setblocking(False)
        stage.link = ours
        async with stage.running(command):
            yield stage
