"""A model in stages, seen from the node of its first stage: who holds what, and that they stay
joined.

Theory of operation:

1. All stages of a plan are prepared at once. The last one is loaded first, then those between, and
   the first when all others are loaded. Then each reaches its next, and the first stage is told
   that the ring is up. Only then is there an engine.
2. Who could not do its part is left out of the next plan, some times.
3. A stage whose lease ended, for whatever reason, is replaced alone: by its own node where only its
   worker died, else by whom the planner names. No node is tried twice until the ring is whole. The
   other stages stay loaded, and keep nothing of what they read: the ring is joined anew in all its
   links, with the next epoch, and the first stage reads again what it was answering.
4. A link that broke by itself is made anew. Where that fails some times, the stage that cannot be
   reached counts as lost.
5. The first stage's end is the engine's end, and so is a stage that nobody can take over.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import trio

from meshnode_skippy import news
from meshnode_skippy.held import NOTHING, Own
from meshnode_skippy.holder import Holder
from meshnode_skippy.lease import Commit, Prepare
from meshnode_skippy.process import StageProcess
from meshnode_skippy.seat import Seat
from p2p_mesh.core.costs import StageModel
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.plans import layers
from p2p_mesh.core.sites import Site, here, site
from p2p_mesh.core.stages import Impossible, Place, Plan, replace
from p2p_mesh.errors import EngineDied, MeshError, ModelError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Load, Mesh

SETTLE = 0.05
"""Seconds in which all is heard of a node that dies: its lease, and its links."""

JOINS = 3
"""Times that the links are made anew before a stage that cannot be reached counts as lost."""

PAUSE = 0.5
"""Seconds between them."""

PLANS = 4
"""Plans that are tried before the model has to wait."""

MENDS, WITHIN = 8, 60.0
"""Times that a ring is mended within so many seconds, before its engine ends: a question may be
what a stage dies of.
"""

Planner = Callable[[set[PeerId]], Awaitable[Plan]]
"""Makes a plan without some nodes. Raises Unavailable where there is none."""


class Ring:
    """The stages of one model. Made by `run_ring`."""

    def __init__(
        self, holder: Holder, mesh: Mesh, load: Load, ref: PackageRef, nursery: trio.Nursery
    ) -> None:
        self.seats: list[Seat] = []
        self._holder = holder
        self._mesh = mesh
        self._load = load
        self._ref = ref
        self._nursery = nursery
        self._run = secrets.token_bytes(16)
        self._epoch = 0
        self._alarm = trio.Event()
        self._is_open = False
        self._mended: deque[float] = deque(maxlen=MENDS)
        self._tried: set[PeerId] = set()
        """Who has failed since the ring was whole."""

    @property
    def process(self) -> StageProcess:
        """The first stage's worker. Raises EngineDied where it has ended."""
        return self._holder.process(self._run, 0)

    async def open(self, planner: Planner) -> Plan:
        """Raises what keeps the model from being served now."""
        shunned: dict[PeerId, MeshError] = {}
        for _ in range(PLANS):
            self.plan = await _planned(planner, shunned)
            lost = await self._try()
            if lost is None:
                self._is_open = True
                return self.plan
            error = _worded(lost)
            await self._leave(error)
            if lost.place.is_here or self._load.topology is not None or _is_model(lost):
                break
            shunned[lost.place.peer] = error
        raise error

    async def _try(self) -> Seat | None:
        """Leases, loads and joins all stages of the plan; the one that failed, if one did."""
        self._run = secrets.token_bytes(16)
        self.seats = [self._take(place, stage) for stage, place in enumerate(self.plan.places)]
        first, *between, last = self.seats
        for seats, do in (
            (self.seats, Seat.prepare),
            ([last], Seat.load),
            (between, Seat.load),
            ([first], Seat.load),
        ):
            await self._each(seats, do)
            if lost := self._lost():
                return lost
        return await self._join()

    def _take(self, place: Place, stage: int) -> Seat:
        """A lease on a stage, which begins to be prepared."""
        load, plan = self._load, self.plan
        asked = Prepare(
            run=self._run,
            secret=secrets.token_bytes(16),
            stage=stage,
            stages=len(plan.places),
            model=load.model.id,
            package=self._ref,
            start=place.start,
            end=place.end,
            context=plan.context,
            slots=plan.slots,
            threads=load.threads or 0,
            kv_type=load.kv_type or "f16",
            wire=load.wire,
            deterministic=load.deterministic,
            speculation=load.speculation is not False,
        )
        seat = Seat(asked, place, alarm=self._wake, moved=self._report)
        own = _own(load) if place.is_here else NOTHING
        self._nursery.start_soon(seat.run, partial(self._holder.open, place.peer, own))
        return seat

    async def _each(self, seats: Iterable[Seat], do: Callable[[Seat], Awaitable[None]]) -> None:
        """Does it with all of them at once, until one is lost."""
        async with trio.open_nursery() as nursery:

            async def one(seat: Seat) -> None:
                await do(seat)
                if seat.end is not None:
                    nursery.cancel_scope.cancel()

            for seat in seats:
                nursery.start_soon(one, seat)

    def _lost(self) -> Seat | None:
        return next((seat for seat in self.seats if seat.end is not None), None)

    async def _leave(self, error: MeshError) -> None:
        """Gives all stages back, so that the memory of the own one is free again."""
        for seat in self.seats:
            seat.leave(error)
        for seat in self.seats:
            await seat.wait_left()

    def _wake(self) -> None:
        self._alarm.set()

    def _report(self) -> None:
        if not self._is_open:
            self._load.progress(sum(seat.share for seat in self.seats) / len(self.seats))

    # The ring

    async def _join(self) -> Seat | None:
        """Makes all links anew. The stage that was lost or cannot be reached, if there is one."""
        for attempt in range(JOINS):
            await trio.sleep(PAUSE * attempt)
            self._epoch += 1
            await self._each(self.seats, lambda seat: seat.commit(self._commit(seat)))
            if lost := self._lost():
                return lost
            apart = [seat for seat in self.seats if not seat.is_running]
            if not apart:
                self.process.restart(self._epoch)
                return None
        return self._unreached(apart[0])

    def _unreached(self, apart: Seat) -> Seat:
        """Who counts as lost where a stage does not reach its next: never the first, which is
        this node's own.
        """
        following = self._next(apart)
        lost = apart if following.place.is_here else following
        lost.leave(Unavailable(f"the link to it cannot be made: {apart.reason}"))
        return lost

    def _next(self, seat: Seat) -> Seat:
        return self.seats[(seat.asked.stage + 1) % len(self.seats)]

    def _commit(self, seat: Seat) -> Commit:
        following = self._next(seat)
        return Commit(
            epoch=self._epoch,
            next=following.place.peer,
            stage=following.asked.stage,
            secret=following.asked.secret,
        )

    async def keep(self) -> None:
        """Mends the ring as often as need be, and ends the engine where it cannot be mended."""
        while True:
            await self._alarm.wait()
            await trio.sleep(SETTLE)
            self._alarm = trio.Event()
            try:
                if not self._is_whole():
                    await self._mend()
            except MeshError as error:
                await self._end(str(error))
                return

    def _count(self) -> None:
        now = trio.current_time()
        if len(self._mended) == MENDS and now - self._mended[0] < WITHIN:
            reasons = [str(_worded(seat)) for seat in self.seats if seat.end is not None]
            raise Unavailable(f"its stages were lost {MENDS} times in a row; {'; '.join(reasons)}")
        self._mended.append(now)

    def _is_whole(self) -> bool:
        return all(seat.end is None and seat.is_running for seat in self.seats)

    async def _mend(self) -> None:
        begun, before = trio.current_time(), self.plan.places
        while not self._is_whole():
            self._count()
            while lost := self._lost():
                await self._replace(lost)
            self._tell_parted()
            await self._join()
        self._tried.clear()
        taken = [place for place in self.plan.places if place not in before]
        news.whole(self._mesh, self._load.model.id, trio.current_time() - begun, taken)

    def _tell_parted(self) -> None:
        reason = next((one.reason for one in self.seats if one.broken >= self._epoch), "")
        if reason:
            news.parted(self._mesh, self._load.model.id, reason)

    async def _end(self, reason: str) -> None:
        try:
            process = self.process
        except EngineDied:
            return
        await process.end(reason)

    async def _replace(self, lost: Seat) -> None:
        """Another node for a stage. Raises Unavailable where there is none."""
        assert lost.end is not None
        stage = lost.asked.stage
        if stage == 0:
            raise lost.end
        news.lost(self._mesh, lost.place, self._load.model.id, _worded(lost))
        is_alive = isinstance(lost.end, EngineDied) and lost.place.peer not in self._tried
        self._tried.add(lost.place.peer)
        place = lost.place if is_alive else self._successor(lost)
        while True:
            self._tried.add(place.peer)
            seat = self._take(place, stage)
            await seat.prepare()
            await seat.load()
            if seat.end is None:
                self.seats[stage] = seat
                self.plan = self.plan.with_place(stage, place)
                return
            place = self._successor(lost)

    def _successor(self, lost: Seat) -> Place:
        where = f"the {layers(lost.place.start, lost.place.end)} were lost: {_worded(lost)}"
        if self._load.topology is not None:
            raise Unavailable(f"{where}; the plan of stages names no other node")
        found = replace(
            self.plan,
            lost.asked.stage,
            sites(self._mesh, without=self._tried),
            most_round_trip=self._load.most_round_trip,
        )
        if isinstance(found, Impossible):
            raise Unavailable(f"{where}; {found}")
        return found


async def _planned(planner: Planner, shunned: dict[PeerId, MeshError]) -> Plan:
    """A plan without those that failed; where there is none, that is the reason."""
    try:
        return await planner(set(shunned))
    except Unavailable as error:
        why = "; ".join(map(str, shunned.values()))
        raise Unavailable(f"{why}; {error}" if why else str(error)) from error


def _is_model(lost: Seat) -> bool:
    """Its worker refused the stage: every other would."""
    return isinstance(lost.end, ModelError) and lost.terms.phase == "loading"


def _own(load: Load) -> Own:
    draft = load.draft.path if load.draft else None
    return Own(draft=draft, memory_limit=load.memory_limit, gpu_layers=load.gpu_layers)


def sites(
    mesh: Mesh, model: StageModel | None = None, without: Iterable[PeerId] = ()
) -> list[Site]:
    """The nodes of a plan; without some, but always with this one."""
    out = set(without)
    others = [
        site(peer, announcement, round_trip=mesh.round_trip(peer), model=model)
        for peer, announcement in mesh.peers()
        if peer not in out
    ]
    return [here(mesh.me(), mesh.resources(), name=mesh.name()), *others]


def _worded(lost: Seat) -> MeshError:
    """Why a stage is lost, and where it was. What only another node could not do is nobody's
    fault here.
    """
    error = lost.end
    assert error is not None
    if lost.place.is_here or _is_model(lost):
        return error
    said = str(error)
    if not said.startswith(lost.place.name):
        said = f"{lost.place.name}: {said}"
    return Unavailable(said, retry_after=error.retry_after)


@asynccontextmanager
async def run_ring(
    holder: Holder, mesh: Mesh, load: Load, ref: PackageRef, planner: Planner
) -> AsyncIterator[Ring]:
    """A ring that is up, and is mended until the context is left."""
    with bare():
        async with trio.open_nursery() as nursery:
            try:
                ring = Ring(holder, mesh, load, ref, nursery)
                await ring.open(planner)
                nursery.start_soon(ring.keep)
                yield ring
            finally:
                nursery.cancel_scope.cancel()
