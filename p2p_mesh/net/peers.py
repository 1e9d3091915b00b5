"""Whom this node is connected to: its seeds, and some of the members that announce themselves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
LONGEST_WAIT = 30.0
"""Seconds between two tries of the same peer, at most."""

Connect = Callable[[PeerId, Sequence[str]], Awaitable[object]]


@dataclass(slots=True)
class _Known:
    addresses: tuple[str, ...]
    attempt: int = 0
    due: float = 0.0


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
        self._seeds = _read_seeds(seeds, us, journal)
        self._known: dict[PeerId, _Known] = {}
        self._changed = trio.Event()

    def know(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Remembers where a member listens; with no address, forgets it."""
        if peer == self._us:
            return
        if not addresses:
            self._known.pop(peer, None)
            return
        held = self._known.get(peer)
        if held is not None and held.addresses == tuple(addresses):
            return
        if held is not None or len(self._known) < MAX_KNOWN:
            self._known[peer] = _Known(tuple(addresses))
            self.poke()

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """All that is known of where a peer listens."""
        known = self._known.get(peer)
        found = (known.addresses if known else ()) + self._seeds.get(peer, ())
        return tuple(dict.fromkeys(found))

    def poke(self) -> None:
        """Wakes both seekers: a peer came, went, or was heard of."""
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._seek_seeds)
            nursery.start_soon(self._seek_members)

    async def _seek_seeds(self) -> None:
        """Tries the seeds, for ever, as long as this node is alone."""
        attempt = 0
        while self._seeds:
            if not self._members:
                await self._try_all({peer: self.addresses(peer) for peer in self._seeds})
            if self._members:
                attempt = 0
                await self._change()
            else:
                await trio.sleep(delay(attempt, self._rng, most=LONGEST_WAIT))
                attempt += 1

    async def _seek_members(self) -> None:
        """Connects to announced members until there are enough."""
        while True:
            await self._try_all(self._pick())
            with trio.move_on_at(self._next_due()):
                await self._change()

    def _pick(self) -> dict[PeerId, tuple[str, ...]]:
        now = trio.current_time()
        due = [peer for peer, known in self._candidates() if known.due <= now]
        wanted = max(0, ENOUGH - len(self._members))
        # By chance, so that a large mesh does not connect to the same few.
        picked = self._rng.sample(due, min(wanted, len(due)))
        for peer in picked:
            known = self._known[peer]
            known.due = now + delay(known.attempt, self._rng, most=LONGEST_WAIT)
            known.attempt += 1
        return {peer: self.addresses(peer) for peer in picked}

    def _candidates(self) -> list[tuple[PeerId, _Known]]:
        return [item for item in self._known.items() if item[0] not in self._members]

    def _next_due(self) -> float:
        if len(self._members) >= ENOUGH:
            return trio.current_time() + LONGEST_WAIT
        soonest = min((known.due for _, known in self._candidates()), default=float("inf"))
        return max(soonest, trio.current_time() + 0.1)

    async def _try_all(self, peers: Mapping[PeerId, tuple[str, ...]]) -> None:
        async with trio.open_nursery() as nursery:
            for peer, addresses in peers.items():
                nursery.start_soon(self._try, peer, addresses)

    async def _try(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            await self._connect(peer, addresses)
        except Refused as error:
            self._journal.warning("refused", f"{peer} and this node part: {error}", peer=peer)
        except MeshError as error:
            self._journal.debug("unreachable", str(error), peer=peer)
        else:
            if known := self._known.get(peer):
                known.attempt = 0

    async def _change(self) -> None:
        await self._changed.wait()


def _read_seeds(
    seeds: Iterable[str], us: PeerId, journal: Journal
) -> dict[PeerId, tuple[str, ...]]:
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
