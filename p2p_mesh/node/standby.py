"""Starts and stops models by what the mesh wants: looks every second, and does what
core/placement/standby.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from p2p_mesh.core.inventory import Inventory, Offer
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.placement.standby import Action, Load, Own, Since, Site, View, plan, watch
from p2p_mesh.errors import MeshError
from p2p_mesh.journal import Journal
from p2p_mesh.node.models import Models

LOOK = 1.0
"""Seconds between two looks."""


class Standby:
    """The models that this node starts by itself."""

    def __init__(
        self,
        me: PeerId,
        models: Models,
        inventory: Inventory,
        rates: Callable[[], Mapping[ModelId, float]],
        journal: Journal,
    ) -> None:
        self._me = me
        self._models = models
        self._inventory = inventory
        self._rates = rates
        self._journal = journal
        self._since: Since = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for action in self.look():
                    nursery.start_soon(self._act, action)
                await trio.sleep(LOOK)

    def look(self) -> tuple[Action, ...]:
        """What is to be done now."""
        own = self._models.own()
        is_planned = any(one.is_planned for one in own)
        could_load = any(one.state == "standby" for one in own)
        rates = self._rates() if is_planned or could_load else {}
        if not (rates or is_planned):
            self._since = {}
            return ()
        view = self._view(own, rates)
        self._since = watch(self._since, view)
        return plan(view, self._since)

    def _view(self, own: tuple[Own, ...], rates: Mapping[ModelId, float]) -> View:
        return View(
            me=self._me,
            now=trio.current_time(),
            rates=self._named(rates),
            own=own,
            sites=tuple(
                _site(offer)
                for offer in self._inventory.offers()
                if offer.peer != self._me and not self._inventory.is_suspect(offer.peer)
            ),
            elsewhere={
                one.id: one.slots
                for one in self._models.hosted.values()
                if one.load is None and one.state == "ready"
            },
        )

    def _named(self, rates: Mapping[ModelId, float]) -> Mapping[ModelId, float]:
        """A file is wanted under its name, and under its name and the digits of its digest."""
        found = dict(rates)
        for held in self._models.held():
            if held.digest is not None:
                exact = rates.get(ModelId(f"{held.id}@{held.digest[:8]}"), 0.0)
                found[held.id] = rates.get(held.id, 0.0) + exact
        return found

    async def _act(self, action: Action) -> None:
        model = action.model
        rate = self._rates().get(model, 0.0)
        try:
            if isinstance(action, Load):
                self._say("model_wanted", f"{model} is wanted: this node starts it", model, rate)
                await self._models.load(model, is_planned=True)
            else:
                self._say("model_spare", f"{model} is not needed here any more", model, rate)
                await self._models.unload(model, is_planned=True)
        except MeshError as error:
            self._models.rest(model)
            self._journal.warning(
                "standby_failed", str(error), model=model, reason=str(error)
            )  # fmt: skip

    def _say(self, event: str, text: str, model: ModelId, rate: float) -> None:
        self._journal.info(
            event, f"{text} ({rate:.1f} requests a minute)", model=model, rate=round(rate, 3)
        )


def _site(offer: Offer) -> Site:
    said = offer.announcement
    return Site(
        offer.peer,
        serves={one.id: one.slots for one in said.models},
        loads=frozenset(one.id for one in said.held if one.loading),
        holds={one.id: one.size_bytes for one in said.held if not one.resting},
        free=said.resources.memory_free,
    )
