"""The slots of one engine, and the waiting for them (core/fairness.py decides who is next)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from p2p_mesh.core.fairness import Turn, Turns
from p2p_mesh.core.names import ModelId
from p2p_mesh.errors import MeshError, Overloaded

QUEUE = 64
"""Requests that may wait for a slot of one model."""

LEAST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds after which whoever is sent away is told to come again."""


class Slots:
    """As many as one life of an engine has."""

    def __init__(self, model: ModelId, count: int, whole: Callable[[], float]) -> None:
        self._model = model
        self._turns = Turns(count, QUEUE)
        self._whole = whole
        """Seconds that a request holds its slot; 0 where nobody knows yet."""
        self._called: dict[Turn, trio.Event] = {}
        self._closed: MeshError | None = None
        self._idle = trio.Event()

    @property
    def count(self) -> int:
        return self._turns.slots

    @property
    def active(self) -> int:
        return self._turns.active

    @property
    def queued(self) -> int:
        return self._turns.queued

    @asynccontextmanager
    async def hold(self, asker: str, *, is_resumed: bool = False) -> AsyncIterator[None]:
        """A slot, once it is this request's turn. Raises Overloaded where there are too many,
        and what `close` is given.
        """
        turn, displaced = self._turns.join(asker, is_resumed=is_resumed)
        self._call(displaced)
        try:
            await self._wait(turn)
            yield
        finally:
            self._call(self._turns.leave(turn))
            if not self.active:
                self._idle.set()

    async def _wait(self, turn: Turn) -> None:
        if turn.state == "waiting":
            called = self._called[turn] = trio.Event()
            try:
                await called.wait()
            finally:
                del self._called[turn]
        else:
            await trio.lowlevel.checkpoint()
        if turn.state == "refused" or self._closed is not None:
            raise self._closed or self._overloaded()

    def _call(self, turn: Turn | None) -> None:
        if turn is not None:
            self._called[turn].set()

    def _overloaded(self) -> Overloaded:
        turns = self.queued / self.count
        return Overloaded(
            f"{self.queued} requests wait for {self._model} already",
            retry_after=min(LONGEST_WAIT, max(LEAST_WAIT, turns * (self._whole() or LEAST_WAIT))),
        )

    def close(self, error: MeshError) -> None:
        """The engine has ended: all that wait are told so. What runs, its engine tells."""
        self._closed = error
        for turn in self._turns.clear():
            self._call(turn)

    async def wait_idle(self) -> None:
        """Returns when nobody has a slot, or waits for one."""
        while self.active or self.queued:
            if self._idle.is_set():
                self._idle = trio.Event()
            await self._idle.wait()
