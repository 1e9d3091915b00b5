"""Whom this node is connected to: its seeds, and some of the members that announce themselves.

Each step costs as much as there are connections, however many members there are: whoever is due
for a try waits in a heap, whoever may be tried now is drawn by chance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from random import Random

import trio

from p2p_mesh.core.backoff import delay
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId, public_key
from p2p_mesh.errors import MeshError, Refused
from p2p_mesh.journal import Journal

ENOUGH = 12
"""Connections that a node seeks on its own: gossip reaches everybody over these."""

MAX_KNOWN = 10_000
MAX_LOST = 256
"""Members whose announcements have lapsed, and who are still looked for."""

TOGETHER = 16
"""Of seeds and lost members, how many are dialed at a time."""

LONGEST_WAIT = 30.0
"""Seconds between two tries of the same peer, at most."""

Connect = Callable[[PeerId, Sequence[str]], Awaitable[object]]
Addresses = tuple[str, ...]


@dataclass(slots=True)
class _Known:
    addresses: Addresses
    serial: int
    """Of its one place, among those that are ready or those that wait; older ones count not."""
    is_ready: bool = True
    attempt: int = 0


class Peers:
    """Keeps this node connected. `poke` it when anything changed."""

    def __init__(
        self,
        us: PeerId,
        seeds: Iterable[str],
        members: Mapping[PeerId, Member],
        connect: Connect,
        *,
        journal: Journal,
        rng: Random,
    ) -> None:
        self._us = us
        self._members = members
        self._connect = connect
        self._journal = journal
        self._rng = rng
        self._seeds = read_seeds(seeds, us, journal)
        self._known: dict[PeerId, _Known] = {}
        self._lost: OrderedDict[PeerId, Addresses] = OrderedDict()
        self._ready: list[tuple[int, PeerId]] = []
        self._waiting: list[tuple[float, int, PeerId]] = []
        self._serial = 0
        self._changed = trio.Event()

    def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remembers where a member listens. With no address it counts as lost: nobody expects it
        any more, and it is tried now and then.
        """
        if peer == self._us:
            return
        held = self._known.get(peer)
        if not addresses:
            if held is not None:
                del self._known[peer]
                self._lose(peer, held.addresses)
        elif held is not None:
            if held.addresses != tuple(addresses):
                held.addresses, held.attempt = tuple(addresses), 0
                self._make_ready(peer, held)
        elif len(self._known) < MAX_KNOWN:
            self._lost.pop(peer, None)
            self._known[peer] = known = _Known(tuple(addresses), 0, is_ready=False)
            self._make_ready(peer, known)

    def forget(self, peer: PeerId) -> None:
        """Seeks it no more: it is out for good."""
        self._known.pop(peer, None)
        self._lost.pop(peer, None)
        self._seeds.pop(peer, None)

    def _lose(self, peer: PeerId, addresses: Addresses) -> None:
        self._lost[peer] = addresses
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)

    def _make_ready(self, peer: PeerId, known: _Known) -> None:
        if not known.is_ready:
            self._place(known)
            known.is_ready = True
            self._ready.append((known.serial, peer))
            if len(self._ready) > 2 * len(self._known) + 64:
                self._ready = [place for place in self._ready if self._is_valid(*place)]
        if len(self._members) < ENOUGH:
            self.poke()

    def _wait(self, peer: PeerId, known: _Known, due: float) -> None:
        self._place(known)
        known.is_ready = False
        heappush(self._waiting, (due, known.serial, peer))

    def _place(self, known: _Known) -> None:
        self._serial += 1
        known.serial = self._serial

    def _is_valid(self, serial: int, peer: PeerId) -> bool:
        known = self._known.get(peer)
        return known is not None and known.serial == serial

    def addresses(self, peer: PeerId) -> Addresses:
        """All that is known of where a peer listens."""
        known = self._known.get(peer)
        found = known.addresses if known else self._lost.get(peer, ())
        return tuple(dict.fromkeys(found + self._seeds.get(peer, ())))

    def poke(self) -> None:
        """Wakes both seekers: a peer came, went, or was heard of."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._seek_lost)
            nursery.start_soon(self._seek_members)

    async def _seek_lost(self) -> None:
        """Tries the seeds and the lost, for ever: all of them while this node is alone, else one
        now and then, since the halves of a mesh that fell apart must find one another again.
        """
        attempt, due = 0, trio.current_time() + LONGEST_WAIT
        while True:
            if not self._members:
                await self._try_until_reached(self._strayed())
                if not self._members:
                    await trio.sleep(delay(attempt, self._rng, most=LONGEST_WAIT))
                    attempt += 1
                continue
            attempt = 0
            with trio.move_on_at(due) as waiting:
                await self._change()
            if waiting.cancelled_caught:
                due = trio.current_time() + LONGEST_WAIT * (0.75 + self._rng.random() / 2)
                strayed = [peer for peer in self._strayed() if peer not in self._known]
                await self._try_until_reached(strayed[:1])

    def _strayed(self) -> list[PeerId]:
        """The seeds and the lost that are not connected, in an order by chance."""
        strayed = [peer for peer in {**self._seeds, **self._lost} if peer not in self._members]
        self._rng.shuffle(strayed)
        return strayed

    async def _try_until_reached(self, peers: Sequence[PeerId]) -> None:
        for start in range(0, len(peers), TOGETHER):
            some = peers[start : start + TOGETHER]
            await self._try_all({peer: self.addresses(peer) for peer in some})
            if self._members:
                return

    async def _seek_members(self) -> None:
        """Connects to announced members until there are enough."""
        while True:
            await self._try_all(self._pick())
            with trio.move_on_at(self._next_due()):
                await self._change()

    def _pick(self) -> dict[PeerId, Addresses]:
        now = trio.current_time()
        self._wake(now)
        picked: dict[PeerId, Addresses] = {}
        wanted = ENOUGH - len(self._members)
        while len(picked) < wanted and self._ready:
            serial, peer = self._draw()
            if not self._is_valid(serial, peer):
                continue
            known = self._known[peer]
            if peer in self._members:
                self._wait(peer, known, now + LONGEST_WAIT)
                continue
            self._wait(peer, known, now + delay(known.attempt, self._rng, most=LONGEST_WAIT))
            known.attempt += 1
            picked[peer] = self.addresses(peer)
        return picked

    def _wake(self, now: float) -> None:
        """Those whose wait is over are ready."""
        while self._waiting and self._waiting[0][0] <= now:
            _, serial, peer = heappop(self._waiting)
            if self._is_valid(serial, peer):
                self._known[peer].is_ready = True
                self._ready.append((serial, peer))

    def _draw(self) -> tuple[int, PeerId]:
        # By chance, so that a large mesh does not connect to the same few.
        place = self._rng.randrange(len(self._ready))
        self._ready[place], self._ready[-1] = self._ready[-1], self._ready[place]
        return self._ready.pop()

    def _next_due(self) -> float:
        now = trio.current_time()
        if len(self._members) >= ENOUGH:
            return now + LONGEST_WAIT
        soonest = now if self._ready else self._waiting[0][0] if self._waiting else inf
        return max(soonest, now + 0.1)

    async def _try_all(self, peers: Mapping[PeerId, Addresses]) -> None:
        async with trio.open_nursery() as nursery:
            for peer, addresses in peers.items():
                nursery.start_soon(self._try, peer, addresses)

    async def _try(self, peer: PeerId, addresses: Addresses) -> None:
        try:
            await self._connect(peer, addresses)
        except Refused as error:
            self._lost.pop(peer, None)
            self._journal.warning("refused", f"{peer} and this node part: {error}", peer=peer)
        except MeshError as error:
            self._journal.debug("unreachable", str(error), peer=peer)
        else:
            if known := self._known.get(peer):
                known.attempt = 0

    async def _change(self) -> None:
        await self._changed.wait()


def read_seeds(seeds: Iterable[str], us: PeerId, journal: Journal) -> dict[PeerId, tuple[str, ...]]:
    """The addresses of each node that seeds name; what is none is told and passed over."""
    found: dict[PeerId, tuple[str, ...]] = {}
    for seed in seeds:
        address, _, name = seed.rpartition("/p2p/")
        peer = PeerId(name)
        try:
            public_key(peer)
        except ValueError:
            journal.warning("bad_seed", f"{seed[:200]} is no address of a node", seed=seed[:200])
            continue
        if address and peer != us:
            found[peer] = (*found.get(peer, ()), address)
    return found
