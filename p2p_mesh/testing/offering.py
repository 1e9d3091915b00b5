"""An iterator that offers its items, for tests of those who pass them on."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import trio

from p2p_mesh.core.offers import Take

T = TypeVar("T")


class Spring(Generic[T]):
    """Gives what is poured in; ends with None."""

    def __init__(self) -> None:
        self._items: deque[T | None] = deque()
        self._take: Take[T] | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def offer(self, take: Take[T]) -> None:
        self._take = take

    def pour(self, item: T | None) -> bool:
        """Whether it was taken at once."""
        is_awaited = bool(self._waiting) and not self._items
        if is_awaited and item is not None and self._take is not None and self._take(item):
            return True
        self._items.append(item)
        self._waiting.unpark()
        return False

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            await self._waiting.park()
        item = self._items.popleft()
        if item is None:
            raise StopAsyncIteration
        return item
