"""Two tries at one thing, the second only where the first is late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from p2p_mesh.errors import MeshError

T = TypeVar("T")


class Race(Generic[T]):
    """`first` begins at once. `late` waits, and gives a second try or None where there is none;
    that returns None where it fails. `close` ends what came too late.
    """

    def __init__(
        self,
        first: Callable[[], Awaitable[T]],
        late: Callable[[], Awaitable[Callable[[], Awaitable[T | None]] | None]],
        close: Callable[[T], Awaitable[None]],
    ) -> None:
        self._first, self._late, self._close = first, late, close
        self._won: list[T] = []
        self._has_second = False

    async def run(self) -> T:
        """What comes first. Raises what `first` does, once the second, if it was begun, has
        failed too.
        """
        failure: MeshError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beside, nursery.cancel_scope)
                try:
                    self._won.append(await self._first())
                except MeshError as error:
                    failure = error
                if failure is None or not self._has_second:
                    nursery.cancel_scope.cancel()
        except BaseException:
            await self._end(self._won)
            raise
        await self._end(self._won[1:])
        if self._won:
            return self._won[0]
        assert failure is not None
        raise failure

    async def _beside(self, both: trio.CancelScope) -> None:
        second = await self._late()
        if second is None:
            return
        self._has_second = True
        result = await second()
        if result is not None:
            self._won.append(result)
            both.cancel()

    async def _end(self, results: list[T]) -> None:
        with trio.CancelScope(shield=True):
            for result in results:
                await self._close(result)
