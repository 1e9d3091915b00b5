"""The models that sources offer (serve/backend.py, Source), each served while it is offered.

A name that is taken here already becomes `name@host:port`; a model whose second name is taken
too is not served. A model that is no longer offered takes no new requests, and goes when those
that run have ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import trio

from p2p_mesh.core.names import ModelId
from p2p_mesh.journal import Journal
from p2p_mesh.serve.backend import Offer, Source
from p2p_mesh.serve.supervisor import Hosted

MODELS = 200
"""Of one node, with those of its files: an announcement has room for 256."""

DRAIN = 300.0
"""Seconds that the answers of a model have to end when it is no longer offered."""


class Sourced:
    """One source, and what it has on this node. `hosted` is the node's own table of models."""

    def __init__(
        self,
        source: Source,
        hosted: dict[str, Hosted],
        *,
        host: Callable[[Offer], Hosted],
        journal: Journal,
        changed: Callable[[], None],
    ) -> None:
        self.heard = trio.Event()
        """Set when the source has first said what it has, or why it does not."""
        self.state: Literal["starting", "ready", "failed"] = "starting"
        self.reason = ""
        """Why it failed, or why not all that it offers is served."""
        self._source = source
        self._hosted = hosted
        self._host = host
        self._journal = journal
        self._changed = changed
        self._mine: dict[ModelId, tuple[Hosted, trio.CancelScope]] = {}
        self._refused: set[ModelId] = set()

    @property
    def name(self) -> str:
        return self._source.name

    async def run(self) -> None:
        """Serves what the source offers, until cancelled."""
        async with trio.open_nursery() as nursery:
            try:
                await self._source.watch(lambda offers: self._take(offers, nursery), self._note)
            except Exception as error:  # noqa: BLE001 - a plugin's defect costs it what comes later
                self._note(f"its plugin failed: {error!r}")

    def _take(self, offers: Sequence[Offer], nursery: trio.Nursery) -> None:
        self.state, self.reason = "ready", ""
        wanted = {offer.id: offer for offer in offers}
        for gone in [one for one in self._mine if one not in wanted]:
            # Out of the table at once, so that the name is free for whoever offers it next.
            del self._hosted[self._mine[gone][0].id]
            self._changed()
            nursery.start_soon(self._drop, *self._mine.pop(gone))
        for offer in wanted.values():
            if offer.id not in self._mine:
                self._add(offer, nursery)
        self.heard.set()

    def _add(self, offer: Offer, nursery: trio.Nursery) -> None:
        name = self._free_name(offer.id)
        if name is None:
            self._refuse(offer.id)
            return
        hosted, scope = self._host(dataclasses.replace(offer, id=name)), trio.CancelScope()
        self._mine[offer.id] = hosted, scope
        self._hosted[name] = hosted
        nursery.start_soon(self._serve, hosted, scope)

    async def _serve(self, hosted: Hosted, scope: trio.CancelScope) -> None:
        with scope:
            await hosted.run()

    async def _drop(self, hosted: Hosted, scope: trio.CancelScope) -> None:
        self._journal.info(
            "model_withdrawn", f"{hosted.id} is no longer offered by {self._source.name}",
            model=hosted.id, source=self._source.name,
        )  # fmt: skip
        with trio.move_on_after(DRAIN):
            await hosted.drain()
        scope.cancel()

    def _free_name(self, wanted: ModelId) -> ModelId | None:
        if len(self._hosted) >= MODELS:
            return None
        names = (wanted, ModelId(f"{wanted}@{self._source.name}"))
        return next((name for name in names if name not in self._hosted), None)

    def _refuse(self, model: ModelId) -> None:
        self.reason = f"{model} is not served: its name is taken, or this node serves {MODELS}"
        if model not in self._refused:
            self._refused.add(model)
            self._warn(self.reason)

    def _note(self, note: str) -> None:
        self.state, self.reason = "failed", note
        self.heard.set()
        self._warn(note)

    def _warn(self, note: str) -> None:
        name = self._source.name
        self._journal.warning("source_note", f"{name}: {note}", source=name, note=note)
