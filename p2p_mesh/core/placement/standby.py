"""Which models this node should start to serve, or stop serving, by itself.

Each node decides alone, from what all have announced, and so that one acts and not all:

1. A model that is wanted, and that nobody serves or loads, is loaded by a node that has its file.
   Rendezvous hashing puts these nodes in an order; each waits its turn, so the next one acts when
   those before it did not.
2. A model that has at least FACTOR times the load of the coldest other one, and over BUSY requests
   a minute, gets one more node in the same way, one at a time.
3. What this node loaded by these rules, and nothing else, it unloads when it has not been needed
   for COLD seconds, and not before KEEP. Of the nodes that serve a wanted model, the first in the
   order never leaves: so, whatever the others do at the same time, one stays.

Up and down have different bounds, and a sign must last before it counts: nothing flaps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from p2p_mesh.core.demand import TRACE
from p2p_mesh.core.names import ModelId, PeerId

WANTED = 0.5
"""Requests a minute from which a model is worth loading: one request, or one wish."""

BUSY = 10.0
"""Requests a minute from which a model may get one more node,"""

FACTOR = 3.0
"""if a slot of it has so many times the requests of a slot of the coldest model;"""

IDLE = 0.5
"""a model with less than this, in requests a minute of a slot, is taken to have this."""

SPARE = 1.5
"""As FACTOR: below it, without this node, the model has one node too many."""

GRACE = 1.5
"""Seconds that a wanted model is unserved before the first acts: a suspect may be back by then."""

TURN = 3.0
"""Seconds between two nodes' turns: the first has said by then that it loads the model."""

LASTING = 10.0
"""Seconds that a model must be hot before another node serves it."""

COLD = 180.0
KEEP = 300.0

LEAVING = 10.0
"""Seconds between the turns of two nodes that would both stop serving a model."""

Sign = Literal["unserved", "hot", "spare"]
State = Literal["standby", "loading", "ready"]
Since = Mapping[tuple[Sign, ModelId], float]
"""Since when each sign has been there without a break."""


@dataclass(frozen=True, slots=True)
class Load:
    model: ModelId


@dataclass(frozen=True, slots=True)
class Unload:
    model: ModelId


Action = Load | Unload


@dataclass(frozen=True, slots=True)
class Site:
    """Another node, as it announced itself; suspects are left out."""

    peer: PeerId
    serves: Mapping[ModelId, int] = field(default_factory=dict)
    """Slots of each model."""
    loads: frozenset[ModelId] = frozenset()
    holds: Mapping[ModelId, int] = field(default_factory=dict)
    """Bytes of each model file that it serves or would load now."""
    free: int = 0
    """Bytes of memory."""


@dataclass(frozen=True, slots=True)
class Own:
    """A model file of this node."""

    model: ModelId
    state: State
    slots: int = 0
    is_planned: bool = False
    """It was loaded by these rules, not by its owner."""
    is_resting: bool = False
    """It must not be loaded now: that failed of late, or its owner unloaded it."""
    since: float = 0.0
    """When it was loaded."""


@dataclass(frozen=True, slots=True)
class View:
    """What this node sees. Models of the same id count as the same."""

    me: PeerId
    now: float
    rates: Mapping[ModelId, float]
    """Requests a minute, over the mesh."""
    own: tuple[Own, ...] = ()
    sites: tuple[Site, ...] = ()
    elsewhere: Mapping[ModelId, int] = field(default_factory=dict)
    """Slots of what this node serves without having its file: the models of endpoints."""


def watch(before: Since, view: View) -> Since:
    """Since when each sign that is there now has been there."""
    return {sign: before.get(sign, view.now) for sign in _signs(view)}


def plan(view: View, since: Since) -> tuple[Action, ...]:
    """What this node should do now: at most one model loaded, and at most one unloaded."""
    due = () if is_busy(view.own) else _due_loads(view, since)
    loads = sorted(due, key=lambda one: _heat(view, one))
    unloads = sorted(_due_unloads(view, since), key=lambda one: one.model)
    return (*loads[:1], *unloads[:1])


def is_busy(own: Iterable[Own]) -> bool:
    """Whether a node loads a model by these rules, and so no other meanwhile."""
    return any(one.state == "loading" and one.is_planned for one in own)


def _heat(view: View, action: Load) -> tuple[float, ModelId]:
    return -view.rates.get(action.model, 0.0), action.model


def _due_loads(view: View, since: Since) -> Iterator[Load]:
    for own in view.own:
        if own.state != "standby" or own.is_resting:
            continue
        turn = TURN * _before(view, own.model)
        if _lasts(view, since, ("unserved", own.model), GRACE + turn) or _lasts(
            view, since, ("hot", own.model), LASTING + turn
        ):
            yield Load(own.model)


def _due_unloads(view: View, since: Since) -> Iterator[Unload]:
    for own in view.own:
        turn = LEAVING * _behind(view, own.model)
        is_kept = view.now - own.since < KEEP
        if not is_kept and _lasts(view, since, ("spare", own.model), COLD + turn):
            yield Unload(own.model)


def _lasts(view: View, since: Since, sign: tuple[Sign, ModelId], seconds: float) -> bool:
    return sign in since and view.now - since[sign] >= seconds


def _signs(view: View) -> Iterator[tuple[Sign, ModelId]]:
    loads = _loads(view)
    for own in view.own:
        if own.state == "standby" and _is_unserved(view, own.model):
            yield "unserved", own.model
        elif own.state == "standby" and _is_hot(view, own.model, loads):
            yield "hot", own.model
        elif own.state == "ready" and own.is_planned and _is_spare(view, own, loads):
            yield "spare", own.model


def _is_unserved(view: View, model: ModelId) -> bool:
    if view.rates.get(model, 0.0) < WANTED or view.elsewhere.get(model):
        return False
    return not any(model in site.loads or site.serves.get(model) for site in view.sites)


def _is_hot(view: View, model: ModelId, loads: Mapping[ModelId, float]) -> bool:
    if view.rates.get(model, 0.0) <= BUSY or any(model in site.loads for site in view.sites):
        return False
    return loads.get(model, 0.0) >= FACTOR * _coldest(loads, model)


def _is_spare(view: View, own: Own, loads: Mapping[ModelId, float]) -> bool:
    rate = view.rates.get(own.model, 0.0)
    if rate < TRACE:
        return True
    servers = [site.peer for site in view.sites if site.serves.get(own.model)]
    if not servers or _first((*servers, view.me), own.model) == view.me:
        return False
    others = sum(site.serves.get(own.model, 0) for site in view.sites)
    return rate / others < SPARE * _coldest(loads, own.model)


def _loads(view: View) -> dict[ModelId, float]:
    """Requests a minute for each slot, of every model that is served somewhere."""
    slots: dict[ModelId, int] = dict(view.elsewhere)
    for own in view.own:
        if own.state == "ready":
            slots[own.model] = slots.get(own.model, 0) + own.slots
    for site in view.sites:
        for model, count in site.serves.items():
            slots[model] = slots.get(model, 0) + count
    return {
        model: view.rates.get(model, 0.0) / count for model, count in slots.items() if count > 0
    }


def _coldest(loads: Mapping[ModelId, float], model: ModelId) -> float:
    return max(IDLE, min((load for one, load in loads.items() if one != model), default=0.0))


def score(model: ModelId, peer: PeerId) -> bytes:
    """Rendezvous hashing: the greatest is first, and all nodes agree on it."""
    return hashlib.blake2b(f"{model}\0{peer}".encode(), digest_size=16).digest()


def _first(peers: Iterable[PeerId], model: ModelId) -> PeerId:
    return max(peers, key=lambda peer: score(model, peer))


def _before(view: View, model: ModelId) -> int:
    """The nodes whose turn to load the model comes before ours."""
    mine = score(model, view.me)
    return sum(
        score(model, site.peer) > mine
        for site in view.sites
        if model in site.holds and not site.serves.get(model) and site.free >= site.holds[model]
    )


def _behind(view: View, model: ModelId) -> int:
    """The nodes whose turn to stop serving the model comes before ours."""
    mine = score(model, view.me)
    return sum(score(model, site.peer) < mine for site in view.sites if site.serves.get(model))
