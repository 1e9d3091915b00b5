"""Keeps the models of this node served: starts the engine, starts it again when it dies, and lets
in as many requests as it can take, one asker after the other (core/fairness.py).

Each model has one task (`Hosted.run`). A model that does not load at first is given up, with the
reason; one that has been ready and dies is brought back, with growing pauses. What a Source offers
is never given up: its server may come back at any time. Nor is a model that other nodes are wanted
for: it waits for them, and says so.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from random import Random
from typing import Literal

import trio

from p2p_mesh.core.backoff import delay
from p2p_mesh.core.names import Digest, ModelId
from p2p_mesh.core.records import (
    Delta,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    ServedModel,
)
from p2p_mesh.core.tempo import Tempo
from p2p_mesh.errors import (
    EngineDied,
    Loading,
    MeshError,
    ModelError,
    RequestError,
    Unavailable,
    UnknownModel,
)
from p2p_mesh.journal import Journal
from p2p_mesh.serve.backend import (
    Backend,
    Capability,
    Description,
    Engine,
    Load,
    Mesh,
    Offer,
    Renewable,
)
from p2p_mesh.serve.capabilities import LACKS, needed
from p2p_mesh.serve.measures import shown
from p2p_mesh.serve.notices import Notices
from p2p_mesh.serve.opening import Memory, Way, by_backend, by_source
from p2p_mesh.serve.pulse import Heard, Pulse, Work
from p2p_mesh.serve.slots import Slots
from p2p_mesh.serve.version import Version, version

State = Literal["loading", "ready", "failed"]

MAX_RELOADS = 8
"""Deaths in a row, each within SETTLED seconds, after which a model is given up."""

SETTLED = 60.0

STALLED = 600.0
"""Seconds without progress after which a load is given up: a disk or a driver that hangs."""

LONGEST_PAUSE = {False: 30.0, True: 5.0}
"""Seconds between two tries at most; less (True) for what a source offers, or what waits for other
nodes, which costs little.
"""


class Hosted:
    """One model on this node, from the wish to serve it to the end of the node, or of the offer."""

    def __init__(
        self,
        wanted: Load | Offer,
        backends: Sequence[Backend] = (),
        *,
        memory: Memory,
        mesh: Mesh,
        journal: Journal,
        rng: Random,
        changed: Callable[[], None],
        is_patient: bool = True,
    ) -> None:
        """Where it is not patient, a model that other nodes are wanted for is given up at once."""
        self.load = wanted if isinstance(wanted, Load) else None
        """None for what a source offers, which is no file of this node."""
        self.id: ModelId = wanted.model.id if isinstance(wanted, Load) else wanted.id
        self.digest: Digest | None = self.load.model.digest if self.load else None
        self.state: State = "loading"
        self.progress = 0.0
        self.error = ""
        """Why the model failed, or why its engine last ended; empty while it is ready."""
        self.room = 0
        """Bytes of experts that it may have here, where it is served by expert shards."""
        self.is_closing = False
        """It takes no new requests, and will not again."""
        self._prepare = (
            partial(by_backend, wanted, backends, memory, mesh)
            if isinstance(wanted, Load)
            else partial(by_source, wanted)
        )
        self._notices = Notices(self.id, journal)
        self._rng = rng
        self._changed = changed
        self._is_patient = is_patient
        self.is_waiting = False
        """Other nodes are wanted, and are not there."""
        self._has_served = False
        self._is_renewed = False
        """Its engine ended so as to be opened anew."""
        self._settled = trio.Event()
        self._ready_at = math.inf
        self._again_at = 0.0
        self._patience = trio.CancelScope()
        self._engine: Engine | None = None
        self._about: Description | None = None
        self._slots: Slots | None = None
        self._pulse: Pulse | None = None
        self._tempo = Tempo()

    @property
    def active(self) -> int:
        return self._slots.active if self._slots else 0

    @property
    def queued(self) -> int:
        return self._slots.queued if self._slots else 0

    @property
    def slots(self) -> int:
        return self._slots.count if self._slots else 0

    @property
    def description(self) -> Description | None:
        return self._about if self._engine else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What its engine says of itself now: who holds which layers may have changed."""
        about = self._described()
        return about.notes if about else ()

    @property
    def measures(self) -> dict[str, float]:
        """What its engine has measured of itself so far."""
        about = self._described()
        return shown(about.measures) if about else {}

    def _described(self) -> Description | None:
        if self._engine is None:
            return None
        try:
            return self._engine.describe()
        except Exception:  # noqa: BLE001 - a plugin's own
            return None

    def served(self) -> ServedModel | None:
        """How this node announces the model; None until it has been ready, and once it is given
        up or drained. While it is brought back it stays announced: whoever asks is told to wait,
        and not that there is no such model.
        """
        about = self._about
        if about is None or self.is_closing:
            return None
        shard = self.load.model.shard if self.load else None
        return ServedModel(
            id=self.id,
            # A shard that was made for the model is another file than the one to be loaded.
            digest=about.digest if about.shard and not shard else self.digest,
            context=about.context,
            slots=about.slots,
            capabilities=tuple(sorted(about.capabilities)),
            resumable=about.resumable,
            numerics=about.numerics,
            shard=about.shard or shard,
            speed=self._tempo.speed,
        )

    def load_now(self) -> ModelLoad:
        """How busy this node is with the model, and how fast: what peers hear with answers."""
        return ModelLoad(
            model=self.id,
            slots=self.slots,
            active=self.active,
            queued=self.queued,
            prefill=self._tempo.prefill,
            first=self._tempo.first,
            whole=self._tempo.whole,
        )

    async def wait_settled(self) -> None:
        """Returns when the model has first become ready, or its engine failed to open."""
        await self._settled.wait()

    async def drain(self) -> None:
        """Returns when all answers have ended that run or wait now; lets in no other from now
        on, and announces the model no longer.
        """
        self.is_closing = True
        self._changed()
        while self.active or self.queued:
            assert self._slots is not None
            await self._slots.wait_idle()

    async def run(self) -> None:
        """Serves the model until cancelled, or until it is given up."""
        try:
            async with self._prepare() as way:
                self._take_part(way.room)
                await self._keep(way)
        except ModelError as error:
            self._fail(str(error))

    def _version(self) -> Version | None:
        """Of its file: another one must not be served under its digest."""
        return version(self.load.model.path) if self.load else None

    def _take_part(self, room: int) -> None:
        if room != self.room:
            self.room = room
            self._changed()

    async def _keep(self, way: Way) -> None:
        deaths = waits = 0
        loaded = self._version()
        while True:
            self._ready_at, self._patience, self.progress = math.inf, trio.CancelScope(), 0.0
            reason = await self._serve(way)
            if self._is_renewed:
                self._notices.renewed(reason)
                continue
            if self._version() != loaded:
                self._fail(f"{reason}; its file is another one now: unload {self.id}, and load it")
                return
            is_lasting = way.is_lasting or self.is_waiting
            if not (self._has_served or is_lasting):
                self._fail(reason)
                return
            waits = waits + 1 if self.is_waiting else 0
            if not waits:
                is_settled = trio.current_time() - self._ready_at > SETTLED
                deaths = 0 if is_settled else deaths + 1
            if deaths > MAX_RELOADS and not is_lasting:
                self._fail(f"its engine died {deaths} times in a row; the last time: {reason}")
                return
            if self._about is not None and (deaths > MAX_RELOADS or waits):
                self._about = None  # nobody need be told any longer to wait for it
                self._changed()
            await self._pause(waits or deaths, reason, LONGEST_PAUSE[is_lasting])

    async def _pause(self, deaths: int, reason: str, most: float) -> None:
        """Until the next try. A reason that stays the same is said once."""
        seconds = delay(deaths - 1, self._rng, first=0.2, most=most)
        self._again_at = trio.current_time() + seconds
        is_news, self.error = reason != self.error, reason
        self._enter("loading")
        self._settled.set()
        if self.is_waiting:
            self._notices.waits(reason)
        elif is_news:
            self._notices.died(reason, was_ready=self._ready_at < math.inf)
        await trio.sleep(seconds)

    async def _serve(self, way: Way) -> str:
        """One life of an engine; returns how it ended."""
        started = trio.current_time()
        self._notices.opens()
        is_waiting = self._is_renewed = False
        try:
            with self._patience:
                self._patience.deadline = started + STALLED
                async with way.open(self._report) as engine:
                    self._patience.deadline = math.inf
                    pulse = self._begin(engine, trio.current_time() - started)
                    try:
                        reason = await pulse.watch()
                        self._is_renewed = isinstance(engine, Renewable) and engine.is_outdated
                        return reason
                    finally:
                        self._end()
            return f"it made no progress for {STALLED:g} s while it loaded"
        except MeshError as error:
            is_of_nodes = isinstance(error, Unavailable) and not isinstance(error, EngineDied)
            is_waiting = is_of_nodes and way.is_split and self._is_patient
            return str(error)
        except Exception as error:  # noqa: BLE001 - a plugin's defect ends its engine, not the node
            return f"{way.maker} failed: {type(error).__name__}: {error}"
        finally:
            if is_waiting != self.is_waiting:
                self.is_waiting = is_waiting
                self._changed()

    def _begin(self, engine: Engine, seconds: float) -> Pulse:
        about = engine.describe()
        self._engine, self._about = engine, about
        self._slots = Slots(self.id, max(about.slots, 1), lambda: self._tempo.whole)
        self._pulse = Pulse(engine, self.id, self._tempo, self._changed)
        self._ready_at = trio.current_time()
        self.progress, self.error = 1.0, ""
        self._has_served, self.is_waiting = True, False
        self._enter("ready")
        self._settled.set()
        self._notices.ready(about, seconds)
        return self._pulse

    def _end(self) -> None:
        """The engine has ended, or will at once. Whoever waits may as well ask elsewhere."""
        self._engine = None
        self._enter("loading")
        if self._slots is not None:
            verb = "is opened anew" if self._is_renewed else "died"
            self._slots.close(EngineDied(f"the engine of {self.id} {verb}", retry_after=1.0))

    def _fail(self, reason: str) -> None:
        self.error, self._about, self.room = reason, None, 0
        self._enter("failed")
        self._settled.set()
        self._notices.failed(reason)

    def _enter(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._changed()

    def _report(self, progress: float) -> None:
        if progress > self.progress:
            self._patience.deadline = trio.current_time() + STALLED
        self.progress = progress
        self._notices.loading(progress)

    @asynccontextmanager
    async def generate(
        self, request: InferenceRequest, asker: str = ""
    ) -> AsyncIterator[AsyncIterator[Delta]]:
        """An answer of this model, once it is the turn of the asker: a peer, or a client of this
        node. Raises RequestError for a model that writes none, Loading, Overloaded, UnknownModel
        where it is drained, or what the engine raises.
        """
        async with (
            self._turn(request, asker, "generate") as (engine, work),
            engine.generate(request) as deltas,
        ):
            yield Heard(deltas, work)

    async def query(self, query: Query, asker: str = "") -> Reply:
        """What the engine replies, once it is the asker's turn. Raises as `generate` does."""
        async with self._turn(query, asker, needed(query)) as (engine, work):
            reply = await engine.query(query)
            work.take(reply)
            return reply

    @asynccontextmanager
    async def _turn(
        self, question: InferenceRequest | Query, asker: str, needed: Capability | None
    ) -> AsyncIterator[tuple[Engine, Work]]:
        engine, slots, pulse = self._open(needed)
        is_resumed = isinstance(question, InferenceRequest) and bool(question.resume)
        async with slots.hold(asker, is_resumed=is_resumed):
            with pulse.working(question) as work:
                yield engine, work

    def _open(self, needed: Capability | None) -> tuple[Engine, Slots, Pulse]:
        if self.is_closing:
            raise UnknownModel(f"{self.id} is being unloaded", param="model")
        if self.state == "failed":
            raise Unavailable(f"{self.id} could not be loaded: {self.error}")
        engine, slots, pulse, about = self._engine, self._slots, self._pulse, self._about
        if engine is None or slots is None or pulse is None or about is None:
            raise self._loading()
        if needed is not None and needed not in about.capabilities:
            can = ", ".join(sorted(about.capabilities))
            raise RequestError(f"{self.id} {LACKS[needed]}; it can: {can}", param="model")
        return engine, slots, pulse

    def _loading(self) -> Loading:
        if not self.error:
            return Loading(f"{self.id} is being loaded ({self.progress:.0%})", retry_after=1.0)
        seconds = self._again_at - trio.current_time()
        verb = "waits for other nodes" if self.is_waiting else "is being started again"
        return Loading(f"{self.id} {verb}: {self.error}", retry_after=max(1.0, seconds))
