"""Goes after those who take part in serving a model by expert shards: tells an engine when its node
is to have another part, and has the file of that ready before.

What a node went by is known for as long as it runs, so an engine that died comes back with the part
that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import trio

from meshnode_expert_shards.building import Built, Whole, build, build_routers, place
from meshnode_expert_shards.engine import Held, ShardEngine
from meshnode_expert_shards.participants import (
    SETTLE,
    Change,
    Division,
    Participant,
    Turn,
    divide,
    gathered,
    key,
    taking_part,
)
from meshnode_expert_shards.rankings import Ranked, find
from p2p_mesh.core.experts.assignment import Impossible
from p2p_mesh.core.experts.shard import shard_recipe
from p2p_mesh.errors import MeshError, Unavailable
from p2p_mesh.serve.backend import Mesh

LOOK = 1.0
"""Seconds between two looks at who takes part."""
GATHER = 2.0
"""Seconds in which nobody new has come, before the parts are first dealt out,"""
GATHERED = 10.0
"""and after which they are, whoever comes."""
RECHECK = 60.0
"""Seconds between two questions for a better ranking."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Known:
    """What a node goes by."""

    division: Division
    ranked: Ranked
    change: Change


class Follower:
    """Of one model on one node."""

    def __init__(
        self, whole: Whole, mesh: Mesh, *, room: int, min_mass: float, settle: float = SETTLE
    ) -> None:
        self._whole = whole
        self._mesh = mesh
        self._me = Participant(mesh.me(), room)
        self._min_mass = min_mass
        self._settle = settle

    async def find(self) -> Ranked | None:
        """The best ranking of the model's experts that there is."""
        return await find(self._whole.digest, self._mesh, self._whole.layout)

    def present(self) -> tuple[Participant, ...]:
        """Those who take part now."""
        return gathered((self._me, *taking_part(self._mesh.peers(), self._whole.digests)))

    async def gather(self) -> tuple[Participant, ...]:
        """Those who take part, once they are all there, as far as can be told."""
        began = since = trio.current_time()
        seen = self.present()
        while trio.current_time() < min(since + GATHER, began + GATHERED):
            await trio.sleep(LOOK / 4)
            if (now := self.present()) != seen:
                seen, since = now, trio.current_time()
        return seen

    async def divide(
        self, participants: tuple[Participant, ...], ranked: Ranked
    ) -> Division | Impossible:
        def found() -> Division | Impossible:
            return divide(ranked.ranking, self._whole.layout, participants, min_mass=self._min_mass)

        return await trio.to_thread.run_sync(found)

    async def begin(self, ranked: Ranked) -> Known:
        """The first division. Raises Unavailable while this node has no part."""
        participants = await self.gather()
        found = await self.divide(participants, ranked)
        if isinstance(found, Impossible):
            raise Unavailable(f"too few nodes take part: {found.why}")
        if found.part(self._me.peer) is None:
            raise Unavailable(
                f"with {self._me.room / 1e9:.1f} GB for experts this node has too little memory "
                f"beside the {len(found.participants)} others that take part"
            )
        return Known(found, ranked, Change(participants, trio.current_time()))

    async def hold(self, division: Division, progress: Progress) -> Held:
        """This node's part of a division, with its file. Raises as `build` does."""
        whole, peer = self._whole, self._me.peer
        part, number = division.part(peer), division.number(peer)
        assert part is not None
        assert number is not None
        if division.assignment.keep == whole.layout.experts:
            return Held(whole, division, peer, built=None)
        parts = len(division.participants)
        recipe = await trio.to_thread.run_sync(
            lambda: shard_recipe(
                whole.header, whole.layout, part.experts, model=whole.digest, mass=part.mass,
                part=number, parts=parts,
            )
        )  # fmt: skip
        name = key(whole.digest, part, number, parts)
        built: Built = await build(whole, recipe, name, progress)
        assert built.path == place(whole, name)
        return Held(whole, division, peer, built, await self._routers())

    async def _routers(self) -> Built | None:
        """Those of the whole model; without them a shard serves as well, and weighs nothing."""
        try:
            return await build_routers(self._whole)
        except MeshError as error:
            self._mesh.say("routers_missing", f"prompts are not weighed: {error}")
            return None

    async def follow(
        self, engine: ShardEngine, known: Known, renewed: Callable[[Known], None]
    ) -> None:
        """Until the engine is to have another part: then `renewed` is told what to go by from now
        on, and the engine ends.
        """
        checked, change, ranked = trio.current_time(), known.change, known.ranked
        while True:
            await trio.sleep(LOOK)
            now, better = trio.current_time(), ranked
            change.see(self.present(), now)
            if now - checked >= RECHECK:
                checked, better = now, await self.find() or ranked
            settled = change.settled(now, self._settle)
            if settled is None and better.sha256 == ranked.sha256:
                continue
            participants, ranked = settled or change.known, better
            found = await self.divide(participants, ranked)
            if self._is_another(found, engine):
                if await self._prepare(found, engine, participants):
                    renewed(Known(found, ranked, Change(participants, now)))
                    await engine.renew(self._reason(found))
                    return
                if self.present() != participants:
                    continue  # it is settled anew
            change.accept(participants)

    def _is_another(self, found: Division | Impossible, engine: ShardEngine) -> TypeGuard[Division]:
        """Whether this node is to have other experts. Where there are no parts, or none for it, it
        keeps what it has.
        """
        part = found.part(self._me.peer) if isinstance(found, Division) else None
        if part is None or isinstance(found, Impossible):
            return False
        if part.experts != engine.held.part.experts:
            return True
        engine.divided(found)
        return False

    async def _prepare(
        self, found: Division, engine: ShardEngine, participants: Sequence[Participant]
    ) -> bool:
        """Has the file of the other part ready, and waits for this node's turn. False: it cannot
        be had, or meanwhile others take part.
        """
        since = trio.current_time()
        try:
            held = await self.hold(found, _quiet)
        except MeshError as error:
            self._mesh.say("shard_kept", f"it goes on with the {engine.held.note}: {error}")
            return False
        left = [one.peer for one in participants]
        urgent = engine.held.division.leaves_holes(left)
        turn = Turn(since, held.number, is_urgent=urgent)
        while not turn.has_come(
            trio.current_time(), is_busy=engine.is_busy, idle_since=engine.idle_since
        ):
            await trio.sleep(LOOK)
            if self.present() != participants:
                return False
        return True

    def _reason(self, found: Division) -> str:
        parts, number = len(found.participants), found.number(self._me.peer)
        assert number is not None
        return f"{parts} take part now, and it goes over to expert shard {number + 1} of {parts}"


def _quiet(_: float) -> None:
    """Nobody waits for it."""
