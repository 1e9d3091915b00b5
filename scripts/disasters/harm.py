"""What happens to the serving nodes, by chance: never to the last one that is well."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import Random
from time import time

import trio
from disasters.town import Server, Town
from disasters.verdict import Disaster, Kind

PAUSE = (6.0, 10.0)
"""Seconds between two disasters: whoever was struck by one is somewhere else by the next."""

SILENCE = (9.0, 14.0)
"""Seconds that a node is stopped or cut off: longer than noticing it may take."""

BUSY, WAIT = 6, 4.0
"""So many answers are waited for, and so many seconds at most: what strikes nobody proves nothing.
"""

SETTLE = 2.0
"""Seconds that a node which is back is let alone."""

DECK: tuple[Kind, ...] = (
    "kill", "cut", "engine", "stop", "kill", "cut", "hang", "restart",
)  # fmt: skip


async def strike(
    town: Town, random: Random, seconds: float, under_way: Callable[[], int]
) -> list[Disaster]:
    """Disasters for so long, at moments when many answers are `under_way`, and what they were.
    Ends when all nodes are well again; one that is not found again is let alone.
    """
    record: list[Disaster] = []
    kinds = _kinds(random)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(random.uniform(*PAUSE))
                await _wait_busy(under_way)
                well = [server for server in town.servers if not server.is_struck]
                if len(well) < 2:
                    continue
                victim, kind = random.choice(well), next(kinds)
                victim.is_struck = True
                record.append(Disaster(kind, victim.name, victim.peer, time()))
                nursery.start_soon(_suffer, town, victim, record[-1], random.uniform(*SILENCE))
    return record


async def _wait_busy(under_way: Callable[[], int]) -> None:
    with trio.move_on_after(WAIT):
        while under_way() < BUSY:  # noqa: ASYNC110 - clients come and go by chance
            await trio.sleep(0.02)


def _kinds(random: Random) -> Iterator[Kind]:
    """All kinds come, in an order of chance."""
    while True:
        yield from random.sample(DECK, len(DECK))


async def _suffer(town: Town, victim: Server, disaster: Disaster, seconds: float) -> None:
    await _PERFORM[disaster.kind](victim, seconds)
    disaster.end = time()
    if await town.finds(victim):
        disaster.back = time()
        await trio.sleep(SETTLE)
        victim.is_struck = False


async def _kill(victim: Server, _seconds: float) -> None:
    victim.kill()
    await victim.wait_next_life()


async def _kill_engine(victim: Server, _seconds: float) -> None:
    after = len(victim.log)
    victim.kill_engine()
    await victim.wait_engine(after)


async def _restart(victim: Server, _seconds: float) -> None:
    victim.node.process.terminate()
    await victim.wait_next_life()


async def _stop(victim: Server, seconds: float) -> None:
    victim.node.signal_all(signal.SIGSTOP)
    await trio.sleep(seconds)
    victim.node.signal_all(signal.SIGCONT)


async def _hang(victim: Server, seconds: float) -> None:
    """Stopped, and killed in the end."""
    victim.node.signal_all(signal.SIGSTOP)
    await trio.sleep(seconds)
    victim.kill()
    await victim.wait_next_life()


async def _cut(victim: Server, seconds: float) -> None:
    await victim.machine.unplug()
    await trio.sleep(seconds)
    await victim.machine.plug()


_PERFORM: Mapping[Kind, Callable[[Server, float], Awaitable[None]]] = {
    "kill": _kill,
    "engine": _kill_engine,
    "restart": _restart,
    "stop": _stop,
    "hang": _hang,
    "cut": _cut,
}
