"""Several answers for one request of a client, a few at a time, in one stream of deltas.

What one of them raises comes out as it is, and ends the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from p2p_mesh.core.offers import Take, offer
from p2p_mesh.core.records import Delta, InferenceRequest

AT_ONCE = 8
"""Requests of one client's request that are under way together; the rest wait, so that they do
not fill a model's queue."""

Answer = Callable[[InferenceRequest], AbstractAsyncContextManager[AsyncIterator[Delta]]]
Grown = tuple[int, Delta]
"""The place of a request, and a delta of its answer."""


def answers(
    answer: Answer, requests: Sequence[InferenceRequest]
) -> AbstractAsyncContextManager[AsyncIterator[Grown]]:
    """The answers to all requests as they grow; leaving the context cancels them."""
    return _one(answer, requests[0]) if len(requests) == 1 else _several(answer, requests)


@asynccontextmanager
async def _one(answer: Answer, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Grown]]:
    async with answer(request) as deltas:
        yield _First(deltas)


class _First:
    """The deltas of the only request. No generator: nobody would close it."""

    def __init__(self, deltas: AsyncIterator[Delta]) -> None:
        self._deltas = deltas

    def offer(self, take: Take[Grown]) -> None:
        """See core/offers.py."""

        def taken(delta: Delta) -> bool:
            return take((0, delta))

        offer(self._deltas, taken)

    def __aiter__(self) -> AsyncIterator[Grown]:
        return self

    async def __anext__(self) -> Grown:
        return 0, await anext(self._deltas)


@asynccontextmanager
async def _several(
    answer: Answer, requests: Sequence[InferenceRequest]
) -> AsyncIterator[AsyncIterator[Grown]]:
    feed = _Feed(answer)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for place, request in enumerate(requests):
            nursery.start_soon(feed.run, feed.sender.clone(), place, request)
        feed.sender.close()
        try:
            yield feed
        except Exception as error:  # noqa: BLE001  raised again outside the nursery
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Feed:
    """Where the answers to several requests meet."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._limit = trio.CapacityLimiter(AT_ONCE)
        self.sender, self._receiver = trio.open_memory_channel[Grown | Exception](0)

    async def run(
        self,
        sender: trio.MemorySendChannel[Grown | Exception],
        place: int,
        request: InferenceRequest,
    ) -> None:
        async with sender, self._limit:
            try:
                async with self._answer(request) as deltas:
                    async for delta in deltas:
                        await sender.send((place, delta))
            except Exception as error:  # noqa: BLE001  raised again by whoever reads
                await sender.send(error)

    def __aiter__(self) -> AsyncIterator[Grown]:
        return self

    async def __anext__(self) -> Grown:
        grown = await anext(self._receiver)
        if isinstance(grown, Exception):
            raise grown
        return grown
