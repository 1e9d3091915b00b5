"""An engine of llama.cpp on the file of an expert shard, under the name of the whole model. It says
what it has of the model, knows whether it is busy, and ends when it is to have another part.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio
from meshnode_llama_cpp.engine import LlamaEngine

from meshnode_expert_shards.building import Built, Whole
from meshnode_expert_shards.participants import Division
from meshnode_expert_shards.parts import Parts, parts_of
from meshnode_expert_shards.running import WeighingEngine
from p2p_mesh.core.experts.assignment import Part
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply, Shard
from p2p_mesh.serve.backend import Description

_SHOWN = 16
"""Digits of a digest that tell files apart."""


@dataclass(frozen=True, slots=True)
class Held:
    """The part of a model that a node has, and why that one."""

    whole: Whole
    division: Division
    peer: PeerId
    built: Built | None
    """None: it is the whole file."""
    routers: Built | None = None
    """Those of the whole model, beside a shard. None: prompts are not weighed."""

    @property
    def number(self) -> int:
        number = self.division.number(self.peer)
        assert number is not None, "only who has a part serves it"
        return number

    @property
    def part(self) -> Part:
        return self.division.assignment.parts[self.number]

    @property
    def parts(self) -> Parts:
        return parts_of(self.division, self.peer, self.whole.layout.experts)

    @property
    def note(self) -> str:
        parts, experts = len(self.division.participants), self.whole.layout.experts
        if self.built is None:
            return f"all {experts} experts, as 1 of {_nodes(parts)}"
        mass = math.floor(self.part.mass * 100) / 100
        return (
            f"expert shard {self.number + 1} of {parts}: {self.division.assignment.keep} of "
            f"{experts} experts a layer, {mass:.2f} of the routing"
        )


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


class ShardEngine:
    """An open shard."""

    def __init__(self, inner: LlamaEngine, held: Held) -> None:
        self.held = held
        """Who takes part may change without another part for this node."""
        self.is_outdated = False
        self.idle_since = trio.current_time()
        self._inner = inner
        self._busy = 0
        self._reason = ""

    @property
    def is_busy(self) -> bool:
        return self._busy > 0

    def describe(self) -> Description:
        about, held = self._inner.describe(), self.held
        notes = (*about.notes, held.note)
        if held.built is None:
            return replace(about, notes=notes)
        return replace(
            about,
            numerics=f"{about.numerics} shard {held.built.sha256[:_SHOWN]}",
            notes=notes,
            shard=Shard(model=held.whole.digest, mass=held.part.mass),
            digest=held.built.sha256,
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        self._busy += 1
        try:
            async with self._inner.generate(request) as deltas:
                yield deltas
        finally:
            self._busy -= 1
            self.idle_since = trio.current_time()

    async def query(self, query: Query) -> Reply:
        return await self._inner.query(query)

    async def wait_ended(self) -> str:
        reason = await self._inner.wait_ended()
        return self._reason or reason

    async def close(self) -> None:
        await self._inner.close()

    def divided(self, division: Division) -> None:
        """Others take part now, and this node has the part that it had."""
        self.held = replace(self.held, division=division)
        if isinstance(self._inner, WeighingEngine):
            self._inner.deal(self.held.parts)

    async def renew(self, reason: str) -> None:
        """Ends, so as to be opened anew."""
        self.is_outdated, self._reason = True, reason
        await self._inner.close()
