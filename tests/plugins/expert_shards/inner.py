"""An engine of llama.cpp as far as a shard's engine can tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply, Text
from p2p_mesh.serve.backend import Description


class Inner:
    def __init__(self) -> None:
        self.closed = trio.Event()

    def describe(self) -> Description:
        return Description(capabilities=frozenset({"generate"}), context=512, slots=2,
                           numerics="cpu f16", notes=("a note",))  # fmt: skip

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        async def deltas() -> AsyncIterator[Delta]:
            yield Delta(text="hello")

        yield deltas()

    async def query(self, query: Query) -> Reply:
        return Text(text="hello")

    async def wait_ended(self) -> str:
        await self.closed.wait()
        return "the engine of moe was closed"

    async def close(self) -> None:
        self.closed.set()


def inner() -> Any:
    return Inner()
