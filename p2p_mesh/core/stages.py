"""How a model is cut into stages, and which node holds which.

As few stages as fit. Of the plans with as few, the one by which a token takes least, alone and in
company (core/cuts.py): near nodes, fast ones, balanced ones. The node that plans holds the first
stage if it can hold any layers: it coordinates.

Theory of operation:

1. Who can hold no stage at all is left out, with the reason (core/sites.py).
2. For two stages, then three and so on, orders of nodes are looked at: all of them where nodes are
   few, else those of the nearest and the largest. For each, the best cut is found.
3. The first number of stages for which there is a cut is the plan's.
4. A topology pins nodes and ranges. It holds as it is, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace as changed
from functools import partial
from itertools import islice, pairwise, permutations
from math import perm

from p2p_mesh.core.costs import StageModel, law
from p2p_mesh.core.cuts import Cut, Cuts
from p2p_mesh.core.plans import (
    Excluded,
    Impossible,
    Place,
    Plan,
    Stage,
    Topology,
    delays,
    flaw,
    layers,
    read_topology,
)
from p2p_mesh.core.sites import BACKEND, Site, gigabytes, objection, shortage

__all__ = ["Excluded", "Impossible", "Place", "Plan", "Stage", "Topology", "layers", "plan",
           "read_topology", "replace"]  # fmt: skip

MOST_STAGES = 64
ORDERS = 2_000
"""Orders of nodes that are looked at, for one number of stages,"""
WORK = 400_000
"""and stages that are weighed."""

ADVICE = "Add nodes or memory, or ask for less: a shorter context, fewer slots, a smaller KV type."


def plan(
    model: StageModel,
    sites: Sequence[Site],
    *,
    split: bool = False,
    topology: Topology | None = None,
    most_round_trip: float = 0.08,
    backend: str = BACKEND,
) -> Plan | Impossible:
    """Who is to hold which layers. One of the sites is the node that plans. With `split`, there
    are two stages or more; with a topology, those that it names or none.
    """
    planner = _Planner(model, sites, most_round_trip=most_round_trip, backend=backend)
    if topology is not None:
        return planner.pinned(topology)
    whole = None if split else planner.whole()
    return whole or planner.found()


def replace(
    plan: Plan,
    lost: int,
    sites: Sequence[Site],
    *,
    most_round_trip: float = 0.08,
    backend: str = BACKEND,
) -> Place | Impossible:
    """Which node takes over exactly the layers of a stage that was lost. The one that had it
    comes first, where it can: it has their weights. Nobody holds two stages.
    """
    place = plan.places[lost]
    if place.is_here:
        return Impossible("the stage that is lost is that of the node that coordinates.")
    busy = {one.peer for number, one in enumerate(plan.places) if number != lost}
    wanted = f"stage {lost} of {plan.model}"
    reasons = {
        one: objection(
            one, wanted, place.memory_bytes, most_round_trip=most_round_trip, backend=backend
        )
        for one in sites
        if one.peer not in busy and not one.is_here
    }
    fits = [changed(place, site=one) for one, reason in reasons.items() if not reason]
    if fits:
        return min(fits, key=lambda one: (one.peer != place.peer, _after(plan, lost, one)))
    return Impossible(
        f"no other node can take {layers(place.start, place.end)} of {plan.model}, "
        f"which take {gigabytes(place.memory_bytes)} GB.",
        excluded=_excluded(reasons.items()),
    )


def _after(plan: Plan, lost: int, place: Place) -> tuple[float, str]:
    return plan.with_place(lost, place).seconds, place.peer


def _excluded(reasons: Iterable[tuple[Site, str]]) -> tuple[Excluded, ...]:
    return tuple(Excluded(one.peer, one.label, why) for one, why in reasons if why)


class _Planner:
    """One search for a plan."""

    def __init__(
        self, model: StageModel, sites: Sequence[Site], *, most_round_trip: float, backend: str
    ) -> None:
        self._model = model
        self._sites = sites
        self._objection = partial(objection, most_round_trip=most_round_trip, backend=backend)
        self._cuts = Cuts(model)
        self._here = next(one for one in sites if one.is_here)
        least = self._cuts.least() or model.need(0, model.total)
        wanted = f"the smallest stage of {model.id}"
        self._reasons = {one: self._objection(one, wanted, least) for one in sites}
        self._reasons[self._here] = self._reasons[self._here] or self._no_first()
        self._eligible = [one for one, reason in self._reasons.items() if not reason]

    def _no_first(self) -> str:
        """Why this node cannot hold the first stage; empty: it can."""
        needs = (self._cuts.need(0, end) for end in range(1, self._model.total))
        least = min((one for one in needs if one is not None), default=0)
        return shortage(self._here, least, f"the smallest first stage of {self._model.id}")

    def whole(self) -> Plan | None:
        """The whole model on this node, if it fits."""
        total = self._model.total
        if self._cuts.fits(0, total, self._here.free):
            return self._plan((self._here,), (total,))
        return None

    def found(self) -> Plan | Impossible:
        for count in range(2, min(MOST_STAGES, len(self._eligible), self._model.total) + 1):
            best = self._best(count)
            if best is not None:
                return self._plan(*best)
        return self._impossible()

    # The search

    def _best(self, count: int) -> tuple[tuple[Site, ...], tuple[int, ...]] | None:
        """The best plan of so many stages."""
        tries = max(8, WORK // (count * self._model.total**2))
        best: tuple[float, tuple[Site, ...], Cut] | None = None
        for bound, order in self._orders(count):
            if best is not None and (tries <= 0 or best[0] <= bound):
                break
            if not self._cuts.is_possible(order):
                continue
            tries -= 1
            cut = self._cuts.best(order)
            assert cut is not None
            cost = law(cut.total, delays(order, self._model.row_bytes)) + cut.longest
            if best is None or cost < best[0]:
                best = cost, order, cut
        return None if best is None else (best[1], best[2].ends)

    def _orders(self, count: int) -> list[tuple[float, tuple[Site, ...]]]:
        """Orders of so many nodes, each with what its plan costs at least, the best first."""
        first = (self._here,) if self._here in self._eligible else ()
        others = [one for one in self._eligible if not one.is_here]
        left = count - len(first)
        orders = islice(permutations(_shortlist(others, left), left), ORDERS)
        found = [(*first, *order) for order in orders]
        return sorted(
            ((self._bound(order), order) for order in found),
            key=lambda one: (one[0], [site.peer for site in one[1]]),
        )

    def _bound(self, order: Sequence[Site]) -> float:
        """No plan with these nodes costs less."""
        read = self._model.read(0, self._model.total)
        speeds = [one.speed for one in order]
        fastest = law(read / max(speeds), delays(order, self._model.row_bytes))
        return fastest + read / sum(speeds)

    def _plan(self, order: Sequence[Site], ends: Sequence[int]) -> Plan:
        model, spots = self._model, pairwise((0, *ends))
        return Plan(
            model.id,
            model.manifest,
            model.context,
            model.slots,
            model.row_bytes,
            places=tuple(
                Place(one, start, end, model.need(start, end), model.read(start, end))
                for one, (start, end) in zip(order, spots, strict=True)
            ),
            excluded=_excluded(
                (one, why) for one, why in self._reasons.items() if one not in order
            ),
            spare=tuple(one for one in self._eligible if one not in order),
        )

    # Where there is none

    def _impossible(self) -> Impossible:
        model, sites = self._model, self._eligible
        excluded = _excluded(self._reasons.items())
        if self._cuts.least() is None:
            why = model.obstacle(0, 1) if model.total > 1 else "it has one layer"
            reason = f"{model.id} cannot be cut into stages: {why}."
            return Impossible(reason, excluded=excluded, is_final=True)
        if len(sites) < 2:
            who = f"only {sites[0].label} can" if sites else "no node of this mesh can"
            return Impossible(
                f"{model.id} is to be cut over two nodes or more, and {who} hold a stage of it.",
                self._why(excluded), self._missing(), excluded,
            )  # fmt: skip
        free, missing = sum(one.free for one in sites), self._missing()
        if missing:
            return Impossible(
                f"{model.id} takes {gigabytes(free + missing)} GB in {len(sites)} stages, and the "
                f"{len(sites)} nodes that can hold one have {gigabytes(free)} GB free together: "
                f"{gigabytes(missing)} GB are missing.",
                ADVICE, missing, excluded,
            )  # fmt: skip
        return Impossible(
            f"{model.id} cannot be cut so that each stage fits its node, though the "
            f"{len(sites)} nodes have {gigabytes(free)} GB free together.",
            ADVICE, excluded=excluded,
        )  # fmt: skip

    def _missing(self) -> int:
        """Bytes by which all nodes together have too little, were they one."""
        model, sites = self._model, self._eligible
        return max(0, model.need(0, model.total) - sum(one.free for one in sites))

    def _why(self, excluded: Sequence[Excluded]) -> str:
        return " ".join(f"{one.name}: {one.reason}." for one in excluded[:8])

    # What somebody wrote

    def pinned(self, topology: Topology) -> Plan | Impossible:
        """The plan of a topology, or what is wrong with it: first, what no node can mend."""
        found = [self._meant(stage) for stage in topology.stages]
        never = flaw(topology) or self._mismatch(topology) or self._never(topology, found)
        if reason := never or self._not_now(topology, found):
            return Impossible(
                f"the plan for {topology.model} cannot be kept: {reason}.",
                excluded=_excluded(self._reasons.items()),
                is_final=bool(never),
            )
        order = [one for one in found if isinstance(one, Site)]
        return self._plan(order, [one.layer_end for one in topology.stages])

    def _mismatch(self, topology: Topology) -> str:
        """Why it is not for this model; empty: it is."""
        model = self._model
        if topology.model != model.id:
            return f"it is not for {model.id}"
        if topology.manifest_sha256 != model.manifest:
            return (
                f"it was made for another package of it, {topology.manifest_sha256[:12]}; this one "
                f"is {model.manifest[:12]}"
            )
        if (end := topology.stages[-1].layer_end) != model.total:
            return f"it ends at layer {end}, and the model has {model.total}"
        return ""

    def _meant(self, stage: Stage) -> Site | str:
        """The node of a stage, or why it is not known."""
        exact = [one for one in self._sites if one.peer == stage.node]
        found = exact or [one for one in self._sites if one.name == stage.node]
        if len(found) > 1:
            return f"{len(found)} nodes are called {stage.node}; name it by its peer id"
        return found[0] if found else f"no node of this mesh that answers is {stage.node}"

    def _never(self, topology: Topology, found: Sequence[Site | str]) -> str:
        """What no node can mend; empty: nothing."""
        mine = self._here.peer, self._here.name
        for number, (stage, one) in enumerate(zip(topology.stages, found, strict=True)):
            is_here = one.is_here if isinstance(one, Site) else stage.node in mine
            if one in found[:number] and isinstance(one, Site):
                return f"{one.label} is named twice"
            if is_here != (number == 0):
                where = one.label if isinstance(one, Site) else stage.node
                return (
                    f"the first stage is that of the node which loads the model, "
                    f"{self._here.label}, and stage {number} is on {where}"
                )
            if why := self._model.obstacle(stage.layer_start, stage.layer_end):
                return f"stage {number}, {why}"
        return ""

    def _not_now(self, topology: Topology, found: Sequence[Site | str]) -> str:
        """What stands against it as the nodes are now; empty: nothing."""
        for number, (stage, one) in enumerate(zip(topology.stages, found, strict=True)):
            if isinstance(one, str):
                return one
            need = self._model.need(stage.layer_start, stage.layer_end)
            if why := self._objection(one, f"stage {number}", need):
                return f"{one.label}: {why}"
        return ""


def _shortlist(sites: Sequence[Site], count: int) -> list[Site]:
    """So many of them that their orders can be looked at: the largest, and the nearest."""
    most = count
    while most < len(sites) and perm(most + 1, count) <= ORDERS:
        most += 1
    largest = sorted(sites, key=lambda one: (-one.free, one.distance, one.peer))[:count]
    nearest = sorted(sites, key=lambda one: (one.distance, -one.speed, one.peer))
    others = [one for one in nearest if one not in largest]
    return [*largest, *others[: most - len(largest)]]
