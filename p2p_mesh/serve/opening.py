"""How the engine of a model is opened: by the backend that serves it best, within the memory that
is free, or as a source offers it. Opens nothing by itself: supervisor.py does, as often as need be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import msgspec

from p2p_mesh.core.records import Resources
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Backend, Engine, Fit, Load, Mesh, Offer, Refusal

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Way:
    """How the engine of one model is opened."""

    maker: str
    """Who opens it, in words."""
    open: Callable[[Progress], AbstractAsyncContextManager[Engine]]
    is_lasting: bool = False
    """It may be of use at any later time, however often it failed: never given up."""
    is_split: bool = False
    """It takes other nodes, which may come later."""


class Memory:
    """Who holds how much of this node's memory, so that two loads do not take the same."""

    def __init__(self, resources: Resources, *, changed: Callable[[], None] = lambda: None) -> None:
        """`changed` is called when another amount is free."""
        self._resources = resources
        self._changed = changed
        self._leased = 0

    def learn(self, bandwidth: float) -> None:
        """How fast it is, once that was measured."""
        self._resources = msgspec.structs.replace(self._resources, bandwidth=bandwidth)

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
        self._take(memory_bytes)
        try:
            yield
        finally:
            self._take(-memory_bytes)

    def _take(self, memory_bytes: int) -> None:
        self._leased += memory_bytes
        if memory_bytes:
            self._changed()


def choose(
    backends: Iterable[Backend], load: Load, resources: Resources
) -> tuple[Backend, Fit] | Refusal:
    """The backend that serves a model best: one that serves it whole unless stages are wanted,
    then the fastest expected, then the longest context.
    """
    wants_split = load.split or load.topology is not None
    fits: list[tuple[Backend, Fit]] = []
    refusals: list[Refusal] = []
    for backend in backends:
        found = _assess(backend, load, resources)
        if isinstance(found, Refusal):
            refusals.append(found)
        elif wants_split and not found.is_split:
            refusals.append(Refusal(f"the backend {backend.name} does not cut models into stages"))
        else:
            fits.append((backend, found))
    if fits:
        return max(fits, key=lambda one: _worth(one[1]))
    if not refusals:
        return Refusal("no backend is installed", "see `meshnode plugins`")
    return Refusal("; ".join(one.reason for one in refusals), refusals[0].advice)


def _worth(fit: Fit) -> tuple[bool, float, int]:
    return not fit.is_split, fit.tokens_per_second or 0.0, fit.context


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


@asynccontextmanager
async def by_backend(
    load: Load, backends: Iterable[Backend], memory: Memory, mesh: Mesh
) -> AsyncIterator[Way]:
    """The way of the best backend, whose memory is leased meanwhile. Raises ModelError where none
    would serve the model.
    """
    chosen = choose(backends, load, memory.free())
    if isinstance(chosen, Refusal):
        raise ModelError(" ".join(part for part in (chosen.reason, chosen.advice) if part))
    backend, fit = chosen

    def opened(progress: Progress) -> AbstractAsyncContextManager[Engine]:
        found = dataclasses.replace(load, context=fit.context, slots=fit.slots, progress=progress)
        return backend.open(found, mesh)

    async with memory.lease(fit.memory_bytes):
        yield Way(f"its backend {backend.name}", opened, is_split=fit.is_split)


@asynccontextmanager
async def by_source(offer: Offer) -> AsyncIterator[Way]:
    """The way of an offer, which needs no memory of this node."""
    yield Way("its source", lambda _: offer.open(), is_lasting=True)
