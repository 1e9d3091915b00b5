"""The models of this node: those that it serves, and the files that stand by.

A file is served because its owner said so (`--model`, `meshnode load`) or because it was wanted
(node/standby.py). When it is served no longer, it stands by. `hosted` is the table that the rest
of the node looks into; the models of sources are in it too (node/sources.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import SystemRandom

import msgspec
import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.placement.standby import Own, is_busy
from p2p_mesh.core.records import Held, ModelFile, Resources
from p2p_mesh.errors import LocalError, ModelError
from p2p_mesh.journal import Journal
from p2p_mesh.node import loads
from p2p_mesh.node.files import Files
from p2p_mesh.node.membership import STARTING
from p2p_mesh.node.sources import MODELS
from p2p_mesh.plugins import Plugins
from p2p_mesh.serve import hardware
from p2p_mesh.serve.backend import Load, Mesh, Offer, Refusal
from p2p_mesh.serve.opening import Memory, choose
from p2p_mesh.serve.store import Digests
from p2p_mesh.serve.supervisor import Hosted
from p2p_mesh.settings import Settings

DRAIN = 60.0
"""Seconds that the answers of a model have to end when it is unloaded."""

REST = 300.0
"""Seconds after which a file that could not be loaded is tried again, where it is wanted."""


@dataclass(eq=False, slots=True)
class _Run:
    """The time in which a file is served, until its engine has ended."""

    hosted: Hosted
    is_planned: bool
    since: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Models:
    """The models of one node."""

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins,
        *,
        memory: Memory,
        mesh: Mesh,
        digests: Digests,
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        self.hosted: dict[str, Hosted] = {}
        self._settings = settings
        self._plugins = plugins
        self._memory = memory
        self._mesh = mesh
        self._journal = journal
        self._changed = changed
        self._resources = memory.free()
        self._files = Files(settings, digests, journal)
        self._given: set[ModelId] = set()
        self._wished: tuple[ModelId, ...] = ()
        self._runs: dict[ModelId, _Run] = {}
        self._rests: dict[ModelId, float] = {}
        self._nursery: trio.Nursery | None = None

    # Before it runs

    def add(self, models: Sequence[ModelFile]) -> None:
        """What --model names: served as soon as the node runs."""
        for model in models:
            load = loads.load(model, self._settings)
            self._files.add(load)
            self._given.add(model.id)
            self.hosted[model.id] = self.host(load)

    def stand_by(self, models: Sequence[ModelFile]) -> None:
        """What --standby names: read, and not loaded."""
        for model in models:
            self._files.add(loads.plain(model, self._settings))

    def wish(self, models: Sequence[ModelId]) -> None:
        """What --model names and this machine has no file of."""
        self._wished = tuple(models)
        for model in models:
            self._journal.warning(
                "model_wished", f"this machine has no file {model}; asking the mesh for it",
                model=model,
            )  # fmt: skip

    def host(self, wanted: Load | Offer, *, is_patient: bool = True) -> Hosted:
        return Hosted(
            wanted,
            self._plugins.backends(),
            memory=self._memory,
            mesh=self._mesh,
            journal=self._journal,
            rng=SystemRandom(),
            changed=self._changed,
            is_patient=is_patient,
        )

    # What there is

    def held(self) -> tuple[Held, ...]:
        """Every model file of this node, served or not."""
        own = self.own()
        busy = is_busy(own)
        return tuple(
            _held(load.model, self.hosted.get(load.model.id), seen, is_busy=busy)
            for load, seen in zip(self._files, own, strict=True)
        )

    def standby(self) -> tuple[ModelFile, ...]:
        """The files that are not served."""
        return tuple(load.model for load in self._files if load.model.id not in self.hosted)

    def files(self) -> tuple[ModelFile, ...]:
        """Every file that this node knows, served or not."""
        return tuple(load.model for load in self._files)

    def leaving(self) -> tuple[Hosted, ...]:
        """What is being unloaded: it takes no more requests, and its last answers still run."""
        runs = self._runs.values()
        return tuple(one.hosted for one in runs if self.hosted.get(one.hosted.id) is not one.hosted)

    def wishes(self) -> tuple[ModelId, ...]:
        """What --model names and this node cannot serve: for want of the file, or of memory."""
        failed = (
            model
            for model in self._given
            if model in self.hosted and self.hosted[model].state == "failed"
        )
        return (*(one for one in self._wished if one not in self.hosted), *failed)

    def is_planned(self, model: ModelId) -> bool:
        """Whether it is served because it was wanted, not because its owner said so."""
        return model in self._runs and self._runs[model].is_planned

    def own(self) -> tuple[Own, ...]:
        """The files of this node, as the plan sees them."""
        now = trio.current_time()
        return tuple(self._own(load.model.id, now) for load in self._files)

    def _own(self, model: ModelId, now: float) -> Own:
        hosted, run = self.hosted.get(model), self._runs.get(model)
        if hosted is None or hosted.state == "failed":
            is_resting = run is not None or now < self._rests.get(model, -math.inf)
            return Own(model, "standby", is_resting=is_resting)
        return Own(
            model,
            "ready" if hosted.state == "ready" else "loading",
            slots=hosted.slots,
            is_planned=run is not None and run.is_planned,
            since=run.since if run else now,
        )

    def measured(self) -> Resources:
        """What this node has to work with now, less what is leased: weights that are read from a
        file in memory count as free there. A server elsewhere is no device of this node.
        """
        devices = {
            about.device
            for one in self.hosted.values()
            if one.load is not None and (about := one.description)
        }
        with suppress(OSError):  # no descriptor is free: what was measured last will do
            self._resources = hardware.measure(self._settings.memory_limit)
        now, left = self._resources, self._memory.free()
        return msgspec.structs.replace(
            now,
            memory_free=min(now.memory_free, left.memory_free),
            device=", ".join(sorted(devices)) or now.device,
            bandwidth=left.bandwidth,
            disk=left.disk,
        )

    # While it runs

    async def run(self) -> None:
        """Serves what was added, and what is loaded later, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for load in self._files:
                if load.model.id in self._given:
                    self._start(nursery, self.hosted[load.model.id])
            await self._learn_digests()
            await trio.sleep_forever()

    async def find(self, reference: str) -> Load:
        """How a file would be loaded; it is named as for `load`. Raises ModelError."""
        return await self._files.find(reference, self.hosted)

    async def load(self, reference: str, *, is_planned: bool = False) -> Hosted:
        """Begins to serve a file: the id of one that stands by, the first digits of its digest, a
        path, or a bundled model's name. Returns when loading has begun. What the plan loaded is
        from now on served because its owner said so.

        Raises ModelError where there is no such file, or it does not fit, and LocalError where
        the model is served already.
        """
        load = await self._files.find(reference, self.hosted)
        if not is_planned and (kept := self._keep(load.model.id)) is not None:
            return kept
        nursery = self._check_free(load.model.id)
        chosen = choose(self._plugins.backends(), load, self._memory.free())
        if isinstance(chosen, Refusal):
            why = " ".join(part for part in (chosen.reason, chosen.advice) if part)
            raise ModelError(f"{load.model.id} cannot be served: {why}")
        self._files.add(load)
        # Where it has to wait for other nodes, one that nobody named is left to others.
        hosted = self.hosted[load.model.id] = self.host(load, is_patient=not is_planned)
        self._start(nursery, hosted, is_planned=is_planned)
        self._changed()
        return hosted

    async def unload(self, reference: str, *, is_planned: bool = False) -> None:
        """Ends serving a file, which then stands by. From now on no request is let in, and those
        that run have DRAIN seconds to end. What its owner unloaded, its owner alone loads again.

        Raises LocalError where it is not served here, or is no file.
        """
        load = self._files.get(reference)
        model = load.model.id if load else ModelId(reference)
        run, hosted = self._runs.get(model), self.hosted.get(model)
        if self._nursery is None or load is None or run is None or run.hosted is not hosted:
            raise LocalError(self._not_served(reference))
        del self.hosted[model]
        self._given.discard(model)
        self._rests[model] = -math.inf if is_planned else math.inf
        self._changed()
        # In a task of its own: whoever asked for it may leave before the last answer has ended.
        over = trio.Event()
        self._nursery.start_soon(self._end, run, over)
        await over.wait()

    def rest(self, model: ModelId) -> None:
        """It could not be loaded: the plan tries it again after REST seconds."""
        until = trio.current_time() + REST
        self._rests[model] = max(until, self._rests.get(model, until))
        self._changed()
        if self._nursery is not None:
            self._nursery.start_soon(self._rested)

    async def _rested(self) -> None:
        # The others have this node in their order again when it would act again, not later.
        await trio.sleep(REST)
        self._changed()

    def _keep(self, model: ModelId) -> Hosted | None:
        """The model, where the plan loaded it: the plan does not unload it any more."""
        run, hosted = self._runs.get(model), self.hosted.get(model)
        if run is None or run.hosted is not hosted or not run.is_planned:
            return None
        run.is_planned = False
        return hosted

    def _start(self, nursery: trio.Nursery, hosted: Hosted, *, is_planned: bool = False) -> None:
        run = self._runs[hosted.id] = _Run(hosted, is_planned, trio.current_time())
        self._rests.pop(hosted.id, None)
        nursery.start_soon(self._serve, run)
        nursery.start_soon(self._learn_digest, hosted.id)

    async def _serve(self, run: _Run) -> None:
        model = run.hosted.id
        with run.scope:
            await run.hosted.run()
        run.ended.set()
        if run.scope.cancelled_caught or not run.is_planned:
            return
        # It was given up, and nobody asked for it by name: others may try.
        self.rest(model)
        del self._runs[model]
        if self.hosted.get(model) is run.hosted:
            del self.hosted[model]
        self._changed()

    async def _end(self, run: _Run, over: trio.Event) -> None:
        model = run.hosted.id
        self._journal.info(
            "model_unloading", f"{model} takes no more requests, and is unloaded", model=model
        )
        with trio.move_on_after(DRAIN):
            await run.hosted.drain()
        run.scope.cancel()
        await run.ended.wait()
        if self._runs.get(model) is run:
            del self._runs[model]
        self._journal.info("model_unloaded", f"{model} is unloaded, and stands by", model=model)
        self._changed()
        over.set()

    def _check_free(self, model: ModelId) -> trio.Nursery:
        if self._nursery is None:
            raise LocalError(STARTING)
        hosted, run = self.hosted.get(model), self._runs.get(model)
        if hosted is None and run is not None:
            raise LocalError(f"{model} is being unloaded; try again in a moment")
        if hosted is not None and hosted.load is None:
            raise LocalError(f"{model} is served by an endpoint of this node already")
        if hosted is not None and hosted.state != "failed":
            raise LocalError(f"{model} is served already ({hosted.state})")
        if hosted is None and len(self.hosted) >= MODELS:
            raise LocalError(f"this node serves {MODELS} models, and no more")
        return self._nursery

    def _not_served(self, reference: str) -> str:
        hosted = self.hosted.get(reference)
        if hosted is not None and hosted.load is None:
            return f"{reference} is the model of an endpoint: stop it there"
        names = ", ".join(one.id for one in self.hosted.values() if one.load is not None)
        return f"{reference} is not served by this node; it serves {names or 'no file'}"

    async def _learn_digests(self) -> None:
        """Of the files that stand by, one after the other: a disk reads one best."""
        for model in self.standby():
            await self._learn_digest(model.id)

    async def _learn_digest(self, model: ModelId) -> None:
        if (digest := await self._files.learn(model)) is None:
            return
        hosted = self.hosted.get(model)
        if hosted is not None and hosted.load is not None:
            hosted.digest = digest
        self._changed()


def _held(model: ModelFile, hosted: Hosted | None, own: Own, *, is_busy: bool) -> Held:
    is_loading = hosted is not None and hosted.state == "loading" and hosted.served() is None
    return Held(
        id=model.id,
        digest=model.digest,
        size_bytes=model.size_bytes,
        loading=is_loading and hosted is not None and hosted.load is not None,
        resting=own.state == "standby" and (own.is_resting or is_busy),
        waiting=hosted is not None and hosted.is_waiting,
        shards=hosted.room if hosted is not None else 0,
    )
