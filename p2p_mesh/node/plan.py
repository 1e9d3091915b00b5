"""What `meshnode plan` shows: how a model of this node would be served now, whole or in stages, by
whom, and why. Decides nothing by itself (core/stages.py does), and loads nothing.
"""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2p_mesh.core import families
from p2p_mesh.core.costs import StageModel, is_tied, rooms, stage_model
from p2p_mesh.core.gguf import Header, read_header
from p2p_mesh.core.inventory import Inventory
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.plans import Excluded, Impossible, Place, Plan, Wanted
from p2p_mesh.core.records import Resources, Role
from p2p_mesh.core.sites import BACKEND, Site, here, site
from p2p_mesh.core.stages import plan
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.backend import Backend, Load, Mesh, Refusal
from p2p_mesh.serve.opening import choose

SHOWN = 100
"""Nodes of a list that are told of."""


def whole_here(load: Load, backends: Iterable[Backend], resources: Resources) -> dict[str, Any]:
    """Whether a machine with so much left could serve a model alone, as plain values."""
    load = dataclasses.replace(load, split=False, topology=None)
    chosen = choose([one for one in backends if one.name != BACKEND], load, resources)
    if isinstance(chosen, Refusal):
        return {"fits": False, "reason": f"{chosen.reason} {chosen.advice}".strip()}
    backend, fit = chosen
    return {
        "fits": True, "reason": "", "backend": backend.name, "context": fit.context,
        "slots": fit.slots, "memory_bytes": fit.memory_bytes, "tokens_per_second": None,
    }  # fmt: skip


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
    ) -> None:
        self._mesh = mesh
        self._inventory = inventory
        self._backends = backends
        self._name = name
        self._find = find
        self._role = role
        self._connected = connected
        self._is_away = is_away

    async def plan(self, wanted: Wanted) -> dict[str, Any]:
        """Plain values; docs/api.md has the shape. Raises ModelError for what is no model of this
        node, Unavailable while it is not connected.
        """
        load = _asked(await self._find(wanted.model), wanted)
        me = self._mesh.me()
        whole = whole_here(load, self._backends, self._mesh.resources())
        model, found = await self._stages(load, me)
        if model is not None and whole["fits"]:
            speed = self._mesh.resources().bandwidth / max(1, model.read(0, model.total))
            whole["tokens_per_second"] = round(speed, 2) or None
        return {
            "model": load.model.id,
            "size_bytes": load.model.size_bytes,
            "choice": _choice(load, whole, found),
            "whole": whole,
            "stages": _shown(found),
            "served_by": self._served_by(load, me)[:SHOWN],
        }

    def _served_by(self, load: Load, me: PeerId) -> list[str]:
        offers = [one for one in self._inventory.offers() if one.peer != me]
        return [
            one.announcement.name or one.peer
            for one in offers
            if any(model.id == load.model.id for model in one.announcement.models)
        ]

    # Stages

    async def _stages(self, load: Load, me: PeerId) -> tuple[StageModel | None, Plan | Impossible]:
        """The plan of two stages or more, with the longest context that fits."""
        if (refused := _refused(load, self._backends, self._mesh.resources())) is not None:
            return None, refused
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
            found = await self._planned(load, model, me)
            if isinstance(found, Plan):
                return model, found
            first = first or (model, found)
        assert first is not None
        return first

    async def _planned(self, load: Load, model: StageModel, me: PeerId) -> Plan | Impossible:
        sites = list(self._sites(model, me))
        return await trio.to_thread.run_sync(
            partial(
                plan, model, sites, split=True, topology=load.topology,
                most_round_trip=load.most_round_trip,
            )
        )  # fmt: skip

    def _sites(self, model: StageModel, me: PeerId) -> Iterator[Site]:
        """This node, those that announce themselves, and the clients, which do not."""
        names = [one.name for one in self._backends]
        role = self._role() or "member"
        yield here(me, self._mesh.resources(), name=self._name, role=role, backends=names)
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
    """The load as the settings want it, but for what was asked."""
    trip = wanted.most_round_trip
    return dataclasses.replace(
        load,
        split=load.split if wanted.split is None else wanted.split,
        topology=wanted.topology or load.topology,
        context=wanted.context or load.context,
        slots=wanted.slots or load.slots,
        most_round_trip=load.most_round_trip if trip is None else trip,
    )


def _refused(load: Load, backends: Iterable[Backend], resources: Resources) -> Impossible | None:
    """What the backend of stages says against the model, whatever nodes there are."""
    found = choose([one for one in backends if one.name == BACKEND] or backends, load, resources)
    if not isinstance(found, Refusal):
        return None
    return Impossible(found.reason, found.advice, is_final=True)


def _header(path: Path) -> Header:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_header(data, len(data))


def _choice(load: Load, whole: Mapping[str, Any], found: Plan | Impossible) -> str | None:
    """What `meshnode run` would do; None: wait."""
    if whole["fits"] and not load.split and load.topology is None:
        return "whole"
    return "stages" if isinstance(found, Plan) else None


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
