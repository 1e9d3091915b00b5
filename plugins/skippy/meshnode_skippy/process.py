"""The worker of one stage, seen from its node: an engine process with a link to the ring beside.

What the first stage's worker answers, it answers as an engine of llama_cpp does.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from meshnode_llama_cpp.engine import LlamaEngine, start

from meshnode_skippy.frames import OpenStage, Restart
from p2p_mesh.serve.backend import Fit

WORKER = "meshnode_skippy.worker"


class StageProcess(LlamaEngine):
    """A stage that is loaded. Made by `run_stage`."""

    link: socket.socket
    """Frames of the ring, each with its length in front."""

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
