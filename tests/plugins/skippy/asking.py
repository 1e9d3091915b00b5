"""A coordinator that says what a test tells it, to node b, and links to the stages there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from meshnode_skippy import lease
from meshnode_skippy.lease import (
    ACTIVATIONS,
    STAGE,
    Hello,
    Loaded,
    LoadStage,
    Prepare,
    Prepared,
    Progress,
)
from msgspec.structs import replace

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.core.wire import encode
from p2p_mesh.serve.backend import Stream
from tests.plugins.skippy.town import Town

A, B = PeerId("a"), PeerId("b")
RUN, SECRET = b"r" * 16, b"s" * 16


class Asker:
    """A coordinator that says what a test tells it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def tell(self, order: Any) -> None:
        await self.stream.send(encode(order))

    async def hear(self) -> Any:
        """The next report that is none of progress."""
        with trio.fail_after(10):
            while isinstance(report := lease.read_report(await self.stream.receive()), Progress):
                pass
        return report


async def prepare(town: Town, file: ModelFile, **fields: Any) -> Prepare:
    ref = (await town.packages.opened(file.path)).ref
    asked = Prepare(
        run=RUN, secret=SECRET, stage=1, stages=3, model="deep", package=ref, start=3, end=6,
        context=256, slots=1,
    )  # fmt: skip
    return replace(asked, **fields)


@asynccontextmanager
async def leased(town: Town, asked: Any = None) -> AsyncIterator[Asker]:
    """A lease of b, as a asks for it."""
    async with town.nodes[A].open_stream(B, STAGE) as stream:
        asker = Asker(stream)
        if asked is not None:
            await asker.tell(asked)
        yield asker


@asynccontextmanager
async def held(town: Town, model: ModelFile) -> AsyncIterator[Asker]:
    """A stage of b that is loaded."""
    async with leased(town, await prepare(town, model)) as asker:
        assert isinstance(await asker.hear(), Prepared)
        await asker.tell(LoadStage())
        assert isinstance(await asker.hear(), Loaded)
        yield asker


@asynccontextmanager
async def linked(town: Town, **fields: Any) -> AsyncIterator[Stream]:
    """A link to the stage of b; its `hello` was said."""
    async with town.nodes[A].open_stream(B, ACTIVATIONS) as stream:
        hello = Hello(run=RUN, stage=1, secret=SECRET, epoch=1)
        await stream.send(encode(replace(hello, **fields)))
        yield stream
