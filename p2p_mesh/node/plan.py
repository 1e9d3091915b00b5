"""What `meshnode plan` shows: how a model of this node would be served now, whole, in stages, by
expert shards or flash, by whom, and why. Decides nothing by itself (core/placement/choice.py does,
and core/stages.py who holds what), and loads nothing.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from p2p_mesh.core import families
from p2p_mesh.core.costs import StageModel, is_tied, rooms, stage_model
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.placement.choice import BACKENDS, Option, decide, weighed
from p2p_mesh.core.plans import Excluded, Impossible, Place, Plan, Wanted
from p2p_mesh.core.records import Choice, Resources, Role
from p2p_mesh.core.sites import Site, here, site
from p2p_mesh.core.stages import plan
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Backend, Fit, Load, Mesh, Refusal
from p2p_mesh.serve.opening import asked, candidates, expectation, option, said

ATTACHED = "an endpoint of this node"

SHOWN = 100
"""Nodes of a list that are told of."""


def whole_here(load: Load, backends: Iterable[Backend], resources: Resources) -> dict[str, Any]:
    """Whether a machine with so much left could serve a model alone, as plain values."""
    others = set(BACKENDS.values())
    found = candidates([one for one in backends if one.name not in others], _as(load), resources)
    if "whole" not in found.fits:
        return {"fits": False, "reason": said(found.refusal("whole"))}
    backend, fit = found.fits["whole"]
    return {"fits": True, "reason": "", **_numbers(backend, fit), "tokens_per_second": None}


def flash_here(load: Load, backends: Iterable[Backend], resources: Resources) -> dict[str, Any]:
    """Whether it could with the experts on its disk."""
    found = _fitting("flash", load, backends, resources)
    if isinstance(found, Refusal):
        return _unfit(found)
    backend, fit = found
    return {"fits": True, "reason": "", **_numbers(backend, fit)}


class Planner:
    """Looks at the mesh as it is now."""

    def __init__(
        self,
        mesh: Mesh,
        inventory: Inventory,
        backends: Sequence[Backend],
        *,
        name: str,
        find: Callable[[str], Awaitable[Load]],
        role: Callable[[], Role | None],
        connected: Callable[[], Mapping[PeerId, Member]],
        is_away: Callable[[PeerId], bool],
        is_attached: Callable[[ModelId], bool] = lambda _: False,
        held: Callable[[ModelId], int] = lambda _: 0,
    ) -> None:
        """`is_attached`: whether an endpoint of this node serves a model. `held`: the memory that
        it has here already, which counts as free: the plan is for loading it again.
        """
        self._mesh = mesh
        self._inventory = inventory
        self._backends = backends
        self._name = name
        self._find = find
        self._role = role
        self._connected = connected
        self._is_away = is_away
        self._is_attached = is_attached
        self._held = held

    async def plan(self, wanted: Wanted) -> dict[str, Any]:
        """Plain values; docs/api.md has the shape. Raises ModelError for what is no model of this
        node, Unavailable while it is not connected.
        """
        load = _asked(await self._find(wanted.model), wanted)
        me, resources = self._mesh.me(), self._resources(load.model.id)
        whole = whole_here(load, self._backends, resources)
        model, found = await self._stages(load, me, resources)
        if model is not None and whole["fits"]:
            speed = resources.bandwidth / max(1, model.read(0, model.total))
            whole["tokens_per_second"] = round(speed, 2) or None
        flash, flash_shown = await self._way("flash", load, resources)
        shards, shards_shown = await self._way("shards", load, resources)
        options = [_whole_option(whole), _stages_option(found), shards, flash]
        best = decide(options, asked=asked(load), min_mass=load.min_mass)
        return {
            "model": load.model.id,
            "size_bytes": load.model.size_bytes,
            "choice": None if best.is_waiting else best.choice,
            "waits": best.is_waiting,
            "why": best.why,
            "whole": whole,
            "stages": _shown(found),
            "shards": shards_shown,
            "flash": flash_shown,
            "served_by": self._served_by(load, me)[:SHOWN],
        }

    def _resources(self, model: ModelId) -> Resources:
        found = self._mesh.resources()
        free = min(found.memory_total, found.memory_free + self._held(model))
        return msgspec.structs.replace(found, memory_free=free)

    def _served_by(self, load: Load, me: PeerId) -> list[str]:
        offers = [one for one in self._inventory.offers() if one.peer != me]
        others = [
            one.announcement.name or one.peer
            for one in offers
            if any(
                model.id == load.model.id and model.shard is None
                for model in one.announcement.models
            )
        ]
        return [ATTACHED, *others] if self._is_attached(load.model.id) else others

    async def _way(
        self, choice: Choice, load: Load, resources: Resources
    ) -> tuple[Option, dict[str, Any]]:
        """A way that a backend knows all of, as it would be now."""
        fitting = _fitting(choice, load, self._backends, resources)
        if isinstance(fitting, Refusal):
            return Option(choice, "refused", said(fitting)), _unfit(fitting)
        backend, fit = fitting
        wanted = _as(load, choice)
        found = await expectation(backend, fit, wanted, resources, mesh=self._mesh)
        seen = weighed(option(choice, found), asked(load), load.min_mass)
        if isinstance(found, Refusal):
            return seen, _unfit(found, is_final=found.is_final)
        fits = seen.state == "ready"
        return seen, {"fits": fits, "reason": seen.reason, **_numbers(backend, found)}

    # Stages

    async def _stages(
        self, load: Load, me: PeerId, resources: Resources
    ) -> tuple[StageModel | None, Plan | Impossible]:
        """The plan of two stages or more, with the longest context that fits."""
        fitting = _fitting("stages", load, self._backends, resources)
        if isinstance(fitting, Refusal):
            return None, Impossible(fitting.reason, fitting.advice, is_final=True)
        package = await self._mesh.package(load.model)
        header = await trio.to_thread.run_sync(_header, package.metadata)
        try:
            cutting = families.study(header, tied=is_tied(package.manifest))
        except ModelError as error:
            return None, Impossible(str(error), is_final=True)
        first: tuple[StageModel, Plan | Impossible] | None = None
        for context, slots in rooms(load.context, load.slots, load.model.context_length):
            model = stage_model(
                package.manifest, header, cutting, sha256=package.ref.manifest, context=context,
                slots=slots, model=load.model.id, kv_type=load.kv_type or "f16", wire=load.wire,
            )  # fmt: skip
            found = await self._planned(load, model, list(self._sites(model, me, resources)))
            if isinstance(found, Plan):
                return model, found
            first = first or (model, found)
        assert first is not None
        return first

    async def _planned(
        self, load: Load, model: StageModel, sites: Sequence[Site]
    ) -> Plan | Impossible:
        return await trio.to_thread.run_sync(
            partial(
                plan, model, sites, split=True, topology=load.topology,
                most_round_trip=load.most_round_trip,
            )
        )  # fmt: skip

    def _sites(self, model: StageModel, me: PeerId, resources: Resources) -> Iterator[Site]:
        """This node, those that announce themselves, and the clients, which do not."""
        names = [one.name for one in self._backends]
        role = self._role() or "member"
        yield here(me, resources, name=self._name, role=role, backends=names)
        announced = {offer.peer: offer for offer in self._inventory.offers() if offer.peer != me}
        for peer, offer in announced.items():
            yield site(
                peer, offer.announcement, round_trip=self._mesh.round_trip(peer), model=model,
                is_suspect=self._is_away(peer),
            )  # fmt: skip
        for peer, member in self._connected().items():
            if peer not in announced and member.role == "client":
                yield Site(peer, role="client")


def _asked(load: Load, wanted: Wanted) -> Load:
    """The load as the settings want it, but for what was asked. Who asks for one way asks for no
    other.
    """
    trip = wanted.most_round_trip
    is_other = {
        "stages": bool(wanted.flash or wanted.shards),
        "flash": bool(wanted.split or wanted.topology or wanted.shards),
        "shards": bool(wanted.split or wanted.topology or wanted.flash),
    }
    return dataclasses.replace(
        load,
        split=_either(wanted.split, load.split and not is_other["stages"]),
        flash=_either(wanted.flash, load.flash and not is_other["flash"]),
        shards=_either(wanted.shards, load.shards and not is_other["shards"]),
        topology=wanted.topology or (None if is_other["stages"] else load.topology),
        context=wanted.context or load.context,
        slots=wanted.slots or load.slots,
        most_round_trip=load.most_round_trip if trip is None else trip,
    )


def _either(told: bool | None, otherwise: bool) -> bool:
    return otherwise if told is None else told


def _as(load: Load, choice: Choice | None = None) -> Load:
    """The load, wanted in that way; None: in the best."""
    return dataclasses.replace(
        load,
        split=choice == "stages",
        flash=choice == "flash",
        shards=choice == "shards",
        topology=load.topology if choice == "stages" else None,
    )


def _fitting(
    choice: Choice, load: Load, backends: Iterable[Backend], resources: Resources
) -> tuple[Backend, Fit] | Refusal:
    """Who would serve it in one way, or what is against that whatever nodes there are."""
    found = candidates(backends, _as(load, choice), resources)
    if choice in found.fits:
        return found.fits[choice]
    if choice in found.refusals:
        return found.refusals[choice]
    return Refusal(f"the plugin {BACKENDS[choice]} is not there.", "See `meshnode plugins`.")


def _numbers(backend: Backend, fit: Fit) -> dict[str, Any]:
    """What a backend expects, as plain values."""
    speed = fit.tokens_per_second
    shown = {
        **fit.details, "backend": backend.name, "context": fit.context, "slots": fit.slots,
        "memory_bytes": fit.memory_bytes,
        "tokens_per_second": None if speed is None else round(speed, 2),
    }  # fmt: skip
    return {**shown, "mass": fit.mass} if fit.choice == "shards" else shown


def _unfit(refusal: Refusal, *, is_final: bool = True) -> dict[str, Any]:
    return {
        "fits": False, "reason": refusal.reason, "advice": refusal.advice, "final": is_final,
    }  # fmt: skip


def _header(path: Path) -> Header:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_header(data, len(data))


def _whole_option(whole: Mapping[str, Any]) -> Option:
    if not whole["fits"]:
        return Option("whole", "refused", whole["reason"])
    return Option("whole", "ready", tokens_per_second=whole["tokens_per_second"])


def _stages_option(found: Plan | Impossible) -> Option:
    if isinstance(found, Plan):
        return Option("stages", "ready", tokens_per_second=found.tokens_per_second)
    return Option("stages", "refused" if found.is_final else "waits", str(found))


def _shown(found: Plan | Impossible) -> dict[str, Any]:
    excluded = [_excluded(one) for one in found.excluded[:SHOWN]]
    if isinstance(found, Impossible):
        return {
            "fits": False, "reason": found.reason, "advice": found.advice,
            "missing_bytes": found.missing, "excluded": excluded, "final": found.is_final,
        }  # fmt: skip
    topology = found.topology()
    return {
        "fits": True, "reason": "", "context": found.context, "slots": found.slots,
        "stages": [_stage(one) for one in found.places],
        "compute_ms": round(found.compute * 1e3, 3), "delay_ms": round(found.delay * 1e3, 3),
        "tokens_per_second": round(found.tokens_per_second, 2),
        "spare": [{"node": one.peer, "name": one.label} for one in found.spare[:SHOWN]],
        "excluded": excluded,
        "words": found.words(),
        "plan": {
            "version": topology.version, "model": topology.model,
            "manifest_sha256": topology.manifest_sha256,
            "stages": [
                {"node": one.node, "layer_start": one.layer_start, "layer_end": one.layer_end}
                for one in topology.stages
            ],
        },
    }  # fmt: skip


def _stage(place: Place) -> dict[str, Any]:
    trip = place.round_trip
    return {
        "node": place.peer, "name": place.name, "layer_start": place.start,
        "layer_end": place.end, "memory_bytes": place.memory_bytes,
        "free_bytes": place.free_bytes, "compute_ms": round(place.seconds * 1e3, 3),
        "round_trip_ms": None if trip is None else round(trip * 1e3, 3),
    }  # fmt: skip


def _excluded(one: Excluded) -> dict[str, str]:
    return {"node": one.peer, "name": one.name, "reason": one.reason}
