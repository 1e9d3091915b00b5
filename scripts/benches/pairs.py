"""Two servers measured by turns: A B, B A, A B; both are up meanwhile if that disturbs neither.

What drifts on the machine then drifts in both, and a median over the pairs shows what is theirs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import count
from random import Random
from typing import TypeVar

import trio
from figures import undisturbed
from load import Server

SPARE = 120.0
"""Seconds that repeated runs may take together, so that the whole keeps to 15 minutes."""
QUIET = 0.01
"""Of a core, which an idle server may take."""
SETTLE = 2.0
"""Seconds over which that is measured."""
_SETTLES = 10

T = TypeVar("T")
Opening = Callable[[], AbstractAsyncContextManager[Server]]
Run = Callable[[Server, Random], Awaitable[T]]
Pair = tuple[T, T]


def ratio(pairs: Sequence[Pair[T]], of: Callable[[T], float]) -> float:
    """The median of what the first has over what the second has."""
    return statistics.median(of(first) / of(second) for first, second in pairs)


class Turns:
    """The runs of one bench; each is tried so often at most, until one is undisturbed."""

    def __init__(self, tries: int) -> None:
        self._tries = tries
        self._spare = SPARE
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:6.1f} s  {text}", file=sys.stderr)

    @asynccontextmanager
    async def together(self, *openings: Opening) -> AsyncIterator[tuple[Opening, ...]]:
        """The servers, kept up if they are quiet while idle; else as they were given."""
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(opening()) for opening in openings]
            if await _are_quiet(servers):
                yield tuple(partial(_kept, server) for server in servers)
                return
        self.say("an idle server takes CPU: each is started for its turns only")
        yield openings

    async def pairs(
        self, what: str, sides: Sequence[Opening], times: int, run: Run[T]
    ) -> list[Pair[T]]:
        """What `run` gives for both, so many times; each of them is first in turn."""
        found = []
        for number in range(times):
            self.say(f"{what}: pair {number + 1} of {times}")
            results = {}
            for side in sorted((0, 1), reverse=number % 2 == 1):
                async with sides[side]() as server:
                    once = partial(run, server)
                    results[side] = await self._undisturbed(once, f"{what} {number}")
            found.append((results[0], results[1]))
        return found

    async def rounds(
        self, what: str, sides: Mapping[str, Callable[[Random], Awaitable[T]]], times: int
    ) -> list[dict[str, T]]:
        """What each side gives, so many times; their order turns round each time."""
        found: list[dict[str, T]] = []
        for number in range(times):
            self.say(f"{what}: round {number + 1} of {times}")
            results = {}
            for side in sorted(sides, reverse=number % 2 == 1):
                results[side] = await self._undisturbed(sides[side], f"{what} {number}")
            found.append(results)
        return found

    async def _undisturbed(self, run: Callable[[Random], Awaitable[T]], name: str) -> T:
        """All sides get the same texts, but each try other ones: what was read once need not
        be read again.
        """
        start, done = time.monotonic(), count()
        most = self._tries if self._spare > 0 else 1
        result = await undisturbed(lambda: run(Random(f"{name} {next(done)}")), tries=most)
        runs = next(done)
        self._spare -= (time.monotonic() - start) * (runs - 1) / runs
        return result


@asynccontextmanager
async def _kept(server: Server) -> AsyncIterator[Server]:
    yield server


async def _are_quiet(servers: Sequence[Server]) -> bool:
    """Whether all are idle, after a while in which they may finish what starting left to do."""
    for _ in range(_SETTLES):
        before = [server.seconds() for server in servers]
        await trio.sleep(SETTLE)
        spent = [server.seconds() - was for server, was in zip(servers, before, strict=True)]
        if max(spent) < QUIET * SETTLE:
            return True
    return False
