"""One node's try at an answer, and an answer that outlives the nodes which try.

Theory of operation:

1. An attempt begins with its first delta: until then a failure goes on to the next node, and
   nobody outside notices.
2. After it, what was passed on is counted (core/resumption.py). Where an attempt breaks, another
   node that has the same file goes on from there, and the client sees a pause.
3. A node that failed is asked again for the same answer only where nobody else has the model, and
   it has come back. An answer that breaks TIMES times is given up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import trio

from p2p_mesh.core.course import Course
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.offers import Take, offer, then
from p2p_mesh.core.records import Delta, InferenceRequest
from p2p_mesh.core.resumption import Progress
from p2p_mesh.core.routing import Candidate
from p2p_mesh.errors import MeshError, RemoteError, RequestError

END_PATIENCE = 1.0
"""Seconds that a node has to end an answer of which all has come."""

TIMES = 16
"""Breaks of one answer, after which it is given up."""

BELIEVED = 2
"""Peers that must say that a request is wrong, in the middle of its answer; one alone may lie."""


class Attempt:
    """A node's answer, its first delta taken to see that it comes. It ends with the delta that has
    the usage, whatever the node may send after that.
    """

    def __init__(
        self,
        candidate: Candidate,
        request: InferenceRequest,
        deltas: AsyncIterator[Delta],
    ) -> None:
        self.candidate = candidate
        self.asking = AsyncExitStack()
        """What keeps it asked: to leave it is to cancel the answer."""
        self._course = Course(request, candidate.context)
        self._deltas = deltas
        self._first: Delta | None = None
        self._is_over = False

    async def begin(self) -> None:
        """Waits for the first delta. Raises MeshErrors."""
        self._first = await self._next("it began")

    async def _next(self, what: str = "its end") -> Delta:
        try:
            delta = await anext(self._deltas)
        except StopAsyncIteration:
            raise RemoteError(f"an answer that ended before {what}") from None
        self._course.check(delta)
        return delta

    async def next(self) -> Delta | None:
        """The next delta; None at the end. Raises MeshErrors."""
        if self._is_over:
            # Which ends it; what comes instead is dropped, and so is the news that the node died.
            with suppress(MeshError), trio.move_on_after(END_PATIENCE):
                await anext(self._deltas, None)
            return None
        delta, self._first = self._first, None
        if delta is None:
            delta = await self._next()
        self._is_over = delta.usage is not None
        return delta

    def offer(self, take: Take[Delta]) -> None:
        """See core/offers.py. How an answer begins and ends is the reader's to see."""

        def expected(delta: Delta) -> bool:
            return self._course.expects(delta) and take(delta)

        offer(self._deltas, then(expected, self._course.check))

    async def close(self) -> None:
        await self.asking.aclose()


@dataclass(slots=True)
class Broken:
    """An answer whose attempt failed, and those that did before it."""

    attempt: Attempt
    error: MeshError
    progress: Progress
    failed: set[PeerId | None]
    """Who failed it, this attempt's node too."""


GoOn = Callable[[Broken], Awaitable[Attempt]]
"""Another attempt in the place of the one that broke; raises where there is none."""


class Lasting:
    """The deltas of an answer, from however many nodes."""

    def __init__(
        self,
        request: InferenceRequest,
        attempt: Attempt,
        go_on: GoOn,
        learn: Callable[[Delta], None],
    ) -> None:
        self._attempt = attempt
        self._progress = Progress(request)
        self._failed: set[PeerId | None] = set()
        self._breaks = self._refusals = 0
        self._go_on = go_on
        self._learn = learn
        self._take: Take[Delta] | None = None

    def offer(self, take: Take[Delta]) -> None:
        """See core/offers.py."""
        self._take = then(take, self._progress.take)
        self._attempt.offer(self._take)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        while True:
            try:
                delta = await self._attempt.next()
            except MeshError as error:
                await self._mend(error)
                continue
            if delta is None:
                raise StopAsyncIteration
            self._progress.take(delta)
            if delta.usage is not None:
                self._learn(delta)
            return delta

    async def _mend(self, error: MeshError) -> None:
        await self._attempt.close()
        self._breaks += 1
        if isinstance(error, RequestError):
            self._refusals += 1 if self._attempt.candidate.peer else BELIEVED
        if self._breaks > TIMES or self._refusals >= BELIEVED:
            raise error
        self._failed.add(self._attempt.candidate.peer)
        broken = Broken(self._attempt, error, self._progress, self._failed)
        self._attempt = await self._go_on(broken)
        if self._take is not None:
            self._attempt.offer(self._take)

    async def close(self) -> None:
        await self._attempt.close()
