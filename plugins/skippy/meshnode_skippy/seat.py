"""A stage as its coordinator sees it: a place of the plan, and the lease there."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from meshnode_skippy import lease
from meshnode_skippy.lease import Broken, Commit, LoadStage, Order, Prepare, Renew, Terms
from p2p_mesh.core.stages import Place
from p2p_mesh.core.wire import encode
from p2p_mesh.errors import MeshError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Stream

_PARTS = 0.6  # of the time until a stage is loaded, what fetching its parts is taken for

STEP = 0.001
"""A share that rose by less is no progress: else steps without end could be told."""


class Seat:
    """`alarm` is told when the lease ends, or a link of the stage; `moved` of all reports."""

    def __init__(
        self,
        asked: Prepare,
        place: Place,
        *,
        alarm: Callable[[], None],
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked = asked
        self.place = place
        self.terms = Terms()
        self.end: MeshError | None = None
        """Why the lease is over."""
        self.broken = 0
        """The newest epoch in which a link of the stage ended."""
        self.reason = ""
        self._alarm = alarm
        self._moved = moved
        self._left = trio.Event()
        self._scope = trio.CancelScope()
        self._changed = trio.Event()
        self._orders, self._given = trio.open_memory_channel[Order](math.inf)

    async def run(self, opening: Callable[[], AbstractAsyncContextManager[Stream]]) -> None:
        """Keeps the lease until it ends, whoever ends it."""
        try:
            with self._scope, bare():
                async with opening() as stream:
                    await self._keep(stream)
        except MeshError as error:
            self.end = self.end or error
        finally:
            self.end = self.end or Unavailable("the lease was given back")
            self._left.set()
            self._change()
            self._alarm()

    async def wait_left(self) -> None:
        """Returns when nothing is left of the lease here."""
        await self._left.wait()

    async def _keep(self, stream: Stream) -> None:
        await stream.send(encode(self.asked))
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak, stream)
                nursery.start_soon(self._renew, stream)
                await stream.listen(self._hear)

    async def _speak(self, stream: Stream) -> None:
        async for order in self._given:
            await stream.send(encode(order))

    async def _renew(self, stream: Stream) -> None:
        while True:
            await trio.sleep(lease.RENEW)
            await stream.send(encode(Renew()))

    def _hear(self, frame: bytes) -> None:
        report = lease.read_report(frame)
        self.terms.report(report)
        if isinstance(report, Broken):
            self.broken, self.reason = max(self.broken, report.epoch), report.reason
            self._alarm()
        self._change()
        self._moved()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def leave(self, error: MeshError) -> None:
        """Ends the lease."""
        self.end = self.end or error
        self._scope.cancel()

    async def prepare(self) -> None:
        """Returns when all parts are there, or the lease is over."""
        await self._until(lambda: self.terms.phase != "preparing")

    async def load(self) -> None:
        """Returns when the stage is loaded, or the lease is over."""
        self._order(LoadStage())
        await self._until(lambda: self.terms.phase != "loading")

    async def commit(self, commit: Commit) -> None:
        """Returns when the next stage was reached, or was not, or the lease is over."""
        self._order(commit)
        await self._until(lambda: self.is_running or self.broken >= commit.epoch)

    @property
    def is_running(self) -> bool:
        """It has reached the next stage, and heard of no link that broke since."""
        return self.terms.phase == "running" and self.broken < self.terms.epoch

    @property
    def share(self) -> float:
        """How far it is on its way to be loaded."""
        match self.terms.phase:
            case "preparing":
                return self.terms.share * _PARTS
            case "prepared":
                return _PARTS
            case "loading":
                return _PARTS + self.terms.share * (1 - _PARTS)
        return 1.0

    def _order(self, order: Order) -> None:
        if self.end is None:
            self.terms.order(order)
            self._orders.send_nowait(order)

    async def _until(self, is_done: Callable[[], bool]) -> None:
        """Gives the lease up where its share rises no more, whatever else is heard."""
        share = self.terms.share
        with trio.move_on_after(lease.STALLED) as scope:
            while self.end is None and not is_done():
                if self.terms.share >= share + STEP:
                    share = self.terms.share
                    scope.deadline = trio.current_time() + lease.STALLED
                await self._changed.wait()
        if scope.cancelled_caught:
            self.leave(Unavailable(f"nothing came of it for {lease.STALLED:g} s"))
