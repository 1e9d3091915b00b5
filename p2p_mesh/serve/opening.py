"""How the engine of a model is opened: by the backend that serves it best, within the memory that
is free, or as a source offers it. Opens nothing by itself: supervisor.py does, as often as need be.

In which way a model is served is decided once, before its engine is first opened
(core/placement/choice.py): whole, or by what backends say of the mesh as it is then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.placement.choice import BACKENDS, NAMES, Decision, Option, decide
from p2p_mesh.core.records import Choice, Resources
from p2p_mesh.errors import MeshError, ModelError, Unavailable
from p2p_mesh.serve.backend import Backend, Engine, Expects, Fit, Load, Mesh, Offer, Refusal

GATHERING = 5.0
"""Seconds that other nodes have to become known, before a model that needs them is served flash."""
LOOK = 0.5
"""Seconds between two looks at them."""
ASKING = 600.0
"""Seconds in which a backend says what it expects. The first time, it may read the whole file."""

_WAYS = {name: choice for choice, name in BACKENDS.items()}
_CANNOT: dict[Choice, str] = {
    "stages": "does not cut models into stages",
    "shards": "does not serve expert shards",
    "flash": "does not read experts from the disk",
}

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Way:
    """How the engine of one model is opened."""

    maker: str
    """Who opens it, in words."""
    open: Callable[[Progress], AbstractAsyncContextManager[Engine]]
    is_lasting: bool = False
    """It may be of use at any later time, however often it failed: never given up."""
    choice: Choice = "whole"
    room: int = 0
    """As `Fit.room`."""

    @property
    def is_split(self) -> bool:
        """Whether it takes other nodes, which may come later."""
        return self.choice in ("stages", "shards")


class Memory:
    """Who holds how much of this node's memory, so that two loads do not take the same."""

    def __init__(self, resources: Resources, *, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when another amount is free."""
        self._resources = resources
        self._changed = changed
        self._leased = 0
        self._models: dict[ModelId, int] = {}

    def learn(self, bandwidth: float, disk: float = 0.0) -> None:
        """How fast it is, and how fast the disk, once that was measured."""
        self._resources = msgspec.structs.replace(self._resources, bandwidth=bandwidth, disk=disk)

    def free(self) -> Resources:
        free = max(0, self._resources.memory_free - self._leased)
        return msgspec.structs.replace(self._resources, memory_free=free)

    def held(self, model: ModelId) -> int:
        """What is leased for that model."""
        return self._models.get(model, 0)

    @asynccontextmanager
    async def lease(self, memory_bytes: int, model: ModelId | None = None) -> AsyncIterator[None]:
        if memory_bytes > self.free().memory_free:
            raise Unavailable(
                f"{memory_bytes / 1e9:.1f} GB are wanted and "
                f"{self.free().memory_free / 1e9:.1f} GB are free"
            )
        self._take(memory_bytes, model)
        try:
            yield
        finally:
            self._take(-memory_bytes, model)

    def _take(self, memory_bytes: int, model: ModelId | None) -> None:
        self._leased += memory_bytes
        if model is not None:
            self._models[model] = self.held(model) + memory_bytes
            if not self._models[model]:
                del self._models[model]
        if memory_bytes:
            self._changed()


def asked(load: Load) -> Choice | None:
    """The way in which somebody wants it served; None: in the best."""
    if load.split or load.topology is not None:
        return "stages"
    if load.flash:
        return "flash"
    return "shards" if load.shards else None


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the backends say of a model, before anybody looks at the mesh."""

    fits: Mapping[Choice, tuple[Backend, Fit]]
    """Of each way in which it could be served, the backend that does that best: the fastest
    expected, then the longest context.
    """
    refusals: Mapping[Choice, Refusal]
    """Why the others cannot, each thing once, by the way in which they serve models."""

    def refusal(self, wanted: Choice | None) -> Refusal:
        """Why nobody can; of a way that is wanted, what its own backend says."""
        if not self.refusals:
            return Refusal("no backend is installed", "see `meshnode plugins`")
        own = self.refusals.get(wanted) if wanted is not None else None
        return own or _joined(tuple(self.refusals.values()))

    def settled(self, load: Load) -> Choice | None:
        """The way, where nothing is left to choose. Nobody is given a part of a model's experts
        who did not ask for it, without a look at how much that is.
        """
        if "whole" in self.fits:
            return "whole"
        if len(self.fits) > 1 or ("shards" in self.fits and not load.shards):
            return None
        return next(iter(self.fits))


def choose(
    backends: Iterable[Backend], load: Load, resources: Resources
) -> tuple[Backend, Fit] | Refusal:
    """The backend that serves a model best, as far as that can be said without the mesh: whoever
    serves it whole; else the fastest, the nodes that it takes being there.
    """
    found = candidates(backends, load, resources)
    if not found.fits:
        return found.refusal(asked(load))
    choice = found.settled(load)
    return (
        found.fits[choice] if choice else max(found.fits.values(), key=lambda one: _worth(one[1]))
    )


def candidates(backends: Iterable[Backend], load: Load, resources: Resources) -> Candidates:
    """Who could serve a model; where a way is asked for, in that alone."""
    wanted = asked(load)
    fits: dict[Choice, tuple[Backend, Fit]] = {}
    refusals: dict[Choice, list[Refusal]] = {}
    for backend in backends:
        found = _assess(backend, load, resources)
        if isinstance(found, Refusal):
            refusals.setdefault(_WAYS.get(backend.name, "whole"), []).append(found)
        elif wanted is not None and found.choice != wanted:
            refused = Refusal(f"the backend {backend.name} {_CANNOT[wanted]}")
            refusals.setdefault(found.choice, []).append(refused)
        elif found.choice not in fits or _worth(found) > _worth(fits[found.choice][1]):
            fits[found.choice] = backend, found
    return Candidates(fits, {choice: _joined(said) for choice, said in refusals.items()})


def _joined(refusals: Sequence[Refusal]) -> Refusal:
    reasons = dict.fromkeys(one.reason for one in refusals)
    return Refusal("; ".join(reasons), refusals[0].advice)


def _worth(fit: Fit) -> tuple[float, int]:
    return fit.tokens_per_second or 0.0, fit.context


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


async def expectation(
    backend: Backend, fit: Fit, load: Load, resources: Resources, *, mesh: Mesh
) -> Fit | Refusal:
    """What a backend expects of a fit of its own, with the mesh as it is now."""
    if not isinstance(backend, Expects):
        return Refusal("which nodes there are for it is not known") if fit.is_split else fit
    with trio.move_on_after(ASKING):
        try:
            found: object = await backend.expect(load, resources, mesh)
        except Unavailable as error:
            return Refusal(str(error))
        except MeshError as error:
            return Refusal(str(error), is_final=True)
        except Exception as error:  # noqa: BLE001 - a plugin's own
            what = f"{type(error).__name__}: {error}"
            return Refusal(f"the backend {backend.name} failed: {what}", is_final=True)
        if isinstance(found, Fit | Refusal):
            return found
        return Refusal(f"the backend {backend.name} failed: it expects {found!r}", is_final=True)
    return Refusal(f"the backend {backend.name} did not say within {ASKING:g} s")


def said(refusal: Refusal) -> str:
    return " ".join(part for part in (refusal.reason, refusal.advice) if part)


def option(choice: Choice, found: Fit | Refusal) -> Option:
    """A way, and what is expected of it now."""
    if isinstance(found, Refusal):
        return Option(choice, "refused" if found.is_final else "waits", said(found))
    return Option(choice, "ready", tokens_per_second=found.tokens_per_second, mass=found.mass)


async def _placed(
    load: Load, backends: Sequence[Backend], memory: Memory, mesh: Mesh
) -> tuple[Backend, Fit]:
    while True:
        found = candidates(backends, load, memory.free())
        if not found.fits:
            raise ModelError(said(found.refusal(asked(load))))
        if (settled := found.settled(load)) is not None:
            return found.fits[settled]
        best = await _weighed(found, load, memory, mesh)
        if best.choice is None:
            raise ModelError(f"{load.model.id} can be served in no way. {best.why}")
        # Another model may have taken the memory meanwhile.
        found = candidates(backends, load, memory.free())
        if best.choice in found.fits:
            if not best.is_waiting:
                way = NAMES[best.choice]
                mesh.say("model_placed", f"{load.model.id} is served {way}. {best.why}")
            return found.fits[best.choice]


async def _weighed(found: Candidates, load: Load, memory: Memory, mesh: Mesh) -> Decision:
    """In which of some ways a model is served now. Where stages would have to wait, other nodes
    have some seconds to become known: as a node starts, none is.
    """
    refused = [
        Option(choice, "refused", said(refusal))
        for choice, refusal in found.refusals.items()
        if choice not in found.fits
    ]
    until = trio.current_time() + GATHERING
    while True:
        options = [
            option(choice, await expectation(*fitting, load, memory.free(), mesh=mesh))
            for choice, fitting in found.fits.items()
        ]
        waits = any(one.choice == "stages" and one.state == "waits" for one in options)
        if not waits or trio.current_time() >= until:
            break
        await trio.sleep(LOOK)
    return decide([*refused, *options], min_mass=load.min_mass)


@asynccontextmanager
async def by_backend(
    load: Load, backends: Iterable[Backend], memory: Memory, mesh: Mesh
) -> AsyncIterator[Way]:
    """The way of the best backend, whose memory is leased meanwhile. Raises ModelError where none
    would serve the model.
    """
    backend, fit = await _placed(load, tuple(backends), memory, mesh)
    # What is leased where experts are left out is all that may be taken, and it is taken.
    limit = fit.memory_bytes if fit.choice in ("flash", "shards") else load.memory_limit

    def opened(progress: Progress) -> AbstractAsyncContextManager[Engine]:
        wanted = dataclasses.replace(
            load, context=fit.context, slots=fit.slots, memory_limit=limit, progress=progress
        )
        return backend.open(wanted, mesh)

    async with memory.lease(fit.memory_bytes, load.model.id):
        yield Way(f"its backend {backend.name}", opened, choice=fit.choice, room=fit.room)


@asynccontextmanager
async def by_source(offer: Offer) -> AsyncIterator[Way]:
    """The way of an offer, which needs no memory of this node."""
    yield Way("its source", lambda _: offer.open(), is_lasting=True)
