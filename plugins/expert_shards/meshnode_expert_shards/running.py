"""The node's side of a shard's engine process: an engine of llama_cpp that is told who has which
experts, and so can hand a conversation over.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from meshnode_llama_cpp.engine import LlamaEngine, open_command
from meshnode_llama_cpp.process import start

from meshnode_expert_shards.parts import Open, Parts
from p2p_mesh.serve.backend import Fit, Load

WORKER = "meshnode_expert_shards.serving"


class WeighingEngine(LlamaEngine):
    """Made by `run_shard`."""

    def deal(self, parts: Parts) -> None:
        """Others take part now."""
        self._post(parts)


@asynccontextmanager
async def run_shard(
    load: Load, plan: Fit, routers: Path, parts: Parts, worker: str = WORKER
) -> AsyncIterator[WeighingEngine]:
    """Starts a process, loads the shard that `load` names, and ends the process when the context
    is left. Raises ModelError and EngineDied.
    """
    process, stream = await start(worker)
    engine = WeighingEngine(load.model.id, plan, process, stream, progress=load.progress)
    async with engine.running(Open(open_command(load, plan), str(routers), parts)):
        yield engine
