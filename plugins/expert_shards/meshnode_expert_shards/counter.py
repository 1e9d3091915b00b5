"""Measures which experts a model uses, in a process of its own: starts it, listens, ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshnode_llama_cpp.engine import LlamaEngine
from meshnode_llama_cpp.frames import Ready
from meshnode_llama_cpp.process import start
from msgspec.structs import replace

from meshnode_expert_shards.frames import Count, Counted, reports
from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import (
    Ranking,
    check_ranking,
    decode_ranking,
    encode_ranking,
    uniform,
)
from p2p_mesh.core.names import Digest
from p2p_mesh.errors import EngineDied, ModelError
from p2p_mesh.serve.backend import Fit

WORKER = "meshnode_expert_shards.worker"

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of it that is done."""


class CountingProcess(LlamaEngine):
    """A process that counts. Once it is ready, it has nothing more to do than that."""

    def __init__(self, *given: Any, progress: Progress) -> None:
        self._show = progress
        self._counted: Counted | None = None
        self._verb = "Loading"
        super().__init__(*given, progress=self._report, reports=reports)

    async def result(self) -> Counted:
        """What it has counted, when it has ended. Raises ModelError, EngineDied."""
        await self.wait_ended()
        if self._counted is None:
            raise self._failure or EngineDied(self._reason)
        return self._counted

    def _take(self, report: Any) -> None:
        match report:
            case Counted():
                self._counted = report
            case Ready():
                self._verb = "Counting"
                super()._take(report)
            case _:
                super()._take(report)

    def _report(self, share: float) -> None:
        self._show(self._verb, share)


async def count(command: Count, *, progress: Progress, worker: str = WORKER) -> Counted:
    """Raises ModelError for a model at fault, EngineDied where its process died."""
    process, stream = await start(worker)
    plan = Fit(command.context, 1, 0)
    counting = CountingProcess(command.name, plan, process, stream, progress=progress)
    async with counting.running(command):
        return await counting.result()


def ranking_of(counted: Counted, model: Digest, layout: Layout) -> Ranking:
    """What was counted, as it is kept: layers that were not computed have counted nothing. Raises
    ModelError where it is not of a model of that layout.
    """
    known = {one.layer: one for one in counted.layers}
    if strange := sorted(set(known) - set(layout.numbers)):
        raise ModelError(f"layers {strange} chose experts that the file does not have")
    empty = uniform(model, layout)
    ranking = replace(
        empty,
        tokens=counted.read + counted.written,
        layers=tuple(known.get(one.layer, one) for one in empty.layers),
    )
    check_ranking(ranking, layout)
    return decode_ranking(encode_ranking(ranking))  # what cannot be read again is not kept
