"""Keeps the models of this node served: chooses a backend, starts the engine, starts it again
when it dies, and lets in as many requests as it can take.

Each model has one task (`Hosted.run`). A model that does not load at first is given up, with the
reason; one that has been ready and dies is brought back, with growing pauses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Literal

import msgspec
import trio

from p2p_mesh.core.backoff import delay
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import Delta, InferenceRequest, Resources, ServedModel
from p2p_mesh.errors import EngineDied, Loading, MeshError, Overloaded, Unavailable
from p2p_mesh.journal import Journal
from p2p_mesh.serve.backend import Backend, Description, Engine, Fit, Load, Mesh, Refusal

State = Literal["loading", "ready", "failed"]

QUEUE = 64
"""Requests that may wait for a slot of one model."""

MAX_RELOADS = 8
"""Deaths in a row, each within SETTLED seconds, after which a model is given up."""

SETTLED = 60.0

STALLED = 600.0
"""Seconds without progress after which a load is given up: a disk or a driver that hangs."""

REPORT_EVERY = 2.0
"""Seconds between two lines about a model that loads."""


class Memory:
    """Who holds how much of this node's memory, so that two loads do not take the same."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._leased = 0

    def free(self) -> Resources:
        free = max(0, self._resources.memory_free - self._leased)
        return msgspec.structs.replace(self._resources, memory_free=free)

    @asynccontextmanager
    async def lease(self, memory_bytes: int) -> AsyncIterator[None]:
        if memory_bytes > self.free().memory_free:
            raise Unavailable(
                f"{memory_bytes / 1e9:.1f} GB are wanted and "
                f"{self.free().memory_free / 1e9:.1f} GB are free"
            )
        self._leased += memory_bytes
        try:
            yield
        finally:
            self._leased -= memory_bytes


def choose(
    backends: Iterable[Backend], load: Load, resources: Resources
) -> tuple[Backend, Fit] | Refusal:
    """The backend that serves a model best: the fastest expected, then the longest context."""
    fits: list[tuple[Backend, Fit]] = []
    refusals: list[Refusal] = []
    for backend in backends:
        found = _assess(backend, load, resources)
        if isinstance(found, Fit):
            fits.append((backend, found))
        else:
            refusals.append(found)
    if fits:
        return max(fits, key=lambda one: (one[1].tokens_per_second or 0.0, one[1].context))
    if not refusals:
        return Refusal("no backend is installed", "see `meshnode plugins`")
    return Refusal("; ".join(one.reason for one in refusals), refusals[0].advice)


def _assess(backend: Backend, load: Load, resources: Resources) -> Fit | Refusal:
    """What a backend says of a model. Its defects refuse the model, and no more."""
    try:
        found: object = backend.assess(load, resources)
    except Exception as error:  # noqa: BLE001 - a plugin's own
        return Refusal(f"the backend {backend.name} failed: {type(error).__name__}: {error}")
    if isinstance(found, Fit) and found.memory_bytes > resources.memory_free:
        return Refusal(f"the backend {backend.name} wants more memory than is free")
    if isinstance(found, Fit | Refusal):
        return found
    return Refusal(f"the backend {backend.name} failed: it says {found!r} of a model")


class Hosted:
    """One model on this node, from the wish to serve it to the end of the node."""

    def __init__(
        self,
        load: Load,
        backends: Sequence[Backend],
        *,
        memory: Memory,
        mesh: Mesh,
        journal: Journal,
        rng: Random,
        changed: Callable[[], None],
    ) -> None:
        self.load = load
        self.state: State = "loading"
        self.progress = 0.0
        self.error = ""
        self.digest: Digest | None = load.model.digest
        self._backends = backends
        self._memory = memory
        self._mesh = mesh
        self._journal = journal
        self._rng = rng
        self._changed = changed
        self._settled = trio.Event()
        self._reported = 0.0
        self._ready_at = math.inf
        self._patience = trio.CancelScope()
        self._engine: Engine | None = None
        self._about: Description | None = None
        self._slots: trio.CapacityLimiter | None = None
        self._seconds = 1.0  # how long an answer takes, smoothed; sets Retry-After

    @property
    def active(self) -> int:
        return self._slots.borrowed_tokens if self._slots else 0

    @property
    def queued(self) -> int:
        return self._slots.statistics().tasks_waiting if self._slots else 0

    @property
    def slots(self) -> int:
        return int(self._slots.total_tokens) if self._slots else 0

    @property
    def description(self) -> Description | None:
        return self._about if self._engine else None

    def served(self) -> ServedModel | None:
        """How this node announces the model; None until it has been ready, and once it is given
        up. While it is brought back it stays announced: whoever asks is told to wait, and not
        that there is no such model.
        """
        about = self._about
        if about is None:
            return None
        return ServedModel(
            id=self.load.model.id,
            digest=self.digest,
            context=about.context,
            slots=about.slots,
            capabilities=tuple(sorted(about.capabilities)),
            resumable=about.resumable,
            numerics=about.numerics,
        )

    async def wait_settled(self) -> None:
        """Returns when the model has first become ready, or failed."""
        await self._settled.wait()

    async def run(self) -> None:
        """Serves the model until cancelled, or until it is given up."""
        chosen = choose(self._backends, self.load, self._memory.free())
        if isinstance(chosen, Refusal):
            self._fail(" ".join(part for part in (chosen.reason, chosen.advice) if part))
            return
        backend, fit = chosen
        load = dataclasses.replace(
            self.load, context=fit.context, slots=fit.slots, progress=self._report
        )
        async with self._memory.lease(fit.memory_bytes):
            await self._keep(backend, load)

    async def _keep(self, backend: Backend, load: Load) -> None:
        deaths = 0
        while True:
            self._ready_at, self._patience, self.progress = math.inf, trio.CancelScope(), 0.0
            reason = await self._serve(backend, load)
            if not self._settled.is_set():
                self._fail(reason)
                return
            deaths = 0 if trio.current_time() - self._ready_at > SETTLED else deaths + 1
            if deaths > MAX_RELOADS:
                self._fail(f"its engine died {deaths} times in a row; the last time: {reason}")
                return
            self._enter("loading")
            self._journal.warning(
                "engine_died", f"the engine of {load.model.id} ended: {reason}; starting it again",
                model=load.model.id, reason=reason,
            )  # fmt: skip
            await trio.sleep(delay(deaths - 1, self._rng, first=0.2, most=30.0))

    async def _serve(self, backend: Backend, load: Load) -> str:
        """One life of an engine; returns how it ended."""
        started = self._reported = trio.current_time()
        try:
            with self._patience:
                self._patience.deadline = started + STALLED
                async with backend.open(load, self._mesh) as engine:
                    self._patience.deadline = math.inf
                    self._begin(engine, trio.current_time() - started)
                    return await engine.wait_ended()
            return f"it made no progress for {STALLED:g} s while it loaded"
        except MeshError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a plugin's defect ends its engine, not the node
            return f"its backend {backend.name} failed: {type(error).__name__}: {error}"
        finally:
            self._engine = None

    def _begin(self, engine: Engine, seconds: float) -> None:
        about = engine.describe()
        self._engine, self._about = engine, about
        self._slots = trio.CapacityLimiter(max(about.slots, 1))
        self._ready_at = trio.current_time()
        self.progress, self.error = 1.0, ""
        self._enter("ready")
        self._settled.set()
        for note in about.notes:
            self._journal.warning(
                "model_note", f"{self.load.model.id}: {note}", model=self.load.model.id, note=note
            )
        self._journal.info(
            "model_ready",
            f"{self.load.model.id} is ready: context {about.context}, "
            f"{about.slots} at a time, on {about.device}, loaded in {seconds:.1f} s",
            model=self.load.model.id, context=about.context, slots=about.slots,
            device=about.device, seconds=round(seconds, 3),
        )  # fmt: skip

    def _fail(self, reason: str) -> None:
        self.error, self._about = reason, None
        self._enter("failed")
        self._settled.set()
        self._journal.error(
            "model_failed", f"{self.load.model.id} cannot be served: {reason}",
            model=self.load.model.id, reason=reason,
        )  # fmt: skip

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed()

    def _report(self, progress: float) -> None:
        now = trio.current_time()
        if progress > self.progress:
            self._patience.deadline = now + STALLED
        self.progress = progress
        if now - self._reported >= REPORT_EVERY and progress < 1.0:
            self._reported = now
            self._journal.info(
                "model_loading", f"{self.load.model.id} is loading: {progress:.0%}",
                model=self.load.model.id, progress=round(progress, 3),
            )  # fmt: skip

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        """An answer of this model, once a slot is free. Raises Loading, Overloaded, or what the
        engine raises.
        """
        engine, slots = self._open()
        async with self._slot(slots):
            started = trio.current_time()
            async with engine.generate(request) as deltas:
                yield deltas
            self._seconds += 0.2 * (trio.current_time() - started - self._seconds)

    def _open(self) -> tuple[Engine, trio.CapacityLimiter]:
        model = self.load.model.id
        if self.state == "failed":
            raise Unavailable(f"{model} could not be loaded: {self.error}")
        if self._engine is None or self._slots is None or self.state != "ready":
            raise Loading(f"{model} is being loaded ({self.progress:.0%})", retry_after=1.0)
        if self.queued >= QUEUE:
            turns = self.queued / self._slots.total_tokens
            raise Overloaded(
                f"{self.queued} requests wait for {model} already",
                retry_after=min(60.0, max(1.0, turns * self._seconds)),
            )
        return self._engine, self._slots

    @asynccontextmanager
    async def _slot(self, slots: trio.CapacityLimiter) -> AsyncIterator[None]:
        # A fresh borrower each time: one task may hold two answers, for itself and a peer.
        borrower = object()
        await slots.acquire_on_behalf_of(borrower)
        try:
            if slots is not self._slots:
                raise EngineDied(f"the engine of {self.load.model.id} died", retry_after=1.0)
            yield
        finally:
            slots.release_on_behalf_of(borrower)
