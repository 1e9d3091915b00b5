"""This node's part in the demand: what is asked of it, what it says of that, and what it hears."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import trio

from p2p_mesh.core.demand import (
    GAP,
    MAX_ENVELOPE,
    TOPIC,
    WISH,
    Demand,
    Reporter,
    Tally,
    read,
)
from p2p_mesh.core.invite import author_of
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import Role
from p2p_mesh.core.wire import encode
from p2p_mesh.errors import MeshError
from p2p_mesh.journal import Journal
from p2p_mesh.node.extensions import Voice

if TYPE_CHECKING:
    from p2p_mesh.net.mesh import Network

SETTLE = 0.1
"""Seconds in which requests are gathered into one report."""


class Demanded:
    """Counts, tells and hears which models are wanted."""

    def __init__(
        self,
        wishes: Callable[[], Iterable[ModelId]],
        *,
        boot: float,
        clock: Callable[[], float],
        journal: Journal,
    ) -> None:
        self._wishes = wishes
        self._clock = clock
        self._journal = journal
        self._tally = Tally()
        self._reporter = Reporter(boot)
        self._demand = Demand()
        self._met: frozenset[PeerId] = frozenset()
        self._news = trio.Event()

    def count(self, model: ModelId) -> None:
        """A client of this node asked for the model."""
        self._tally.count(model, self._clock())
        self.wake()

    def wake(self) -> None:
        """What this node wants may have changed."""
        self._news.set()
        self._news = trio.Event()

    def met(self, connected: Iterable[PeerId]) -> None:
        """These are connected now. Reports are in no snapshot: who is new gets one soon."""
        before, self._met = self._met, frozenset(connected)
        if self._met - before:
            self._reporter.repeat()
            self.wake()

    def rates(self) -> dict[ModelId, float]:
        """Requests a minute for each model that is wanted, over the whole mesh."""
        now = self._clock()
        rates = self._demand.totals(now)
        for model, rate in self._tally.rates(now).items():
            rates[model] = rates.get(model, 0.0) + rate
        for model in self._wishes():
            rates[model] = rates.get(model, 0.0) + WISH
        return rates

    async def open(self, network: Network, voice: Voice, nursery: trio.Nursery) -> None:
        """Joins the topic; reports are published in `nursery`."""
        await network.subscribe(TOPIC, partial(self._receive, voice), MAX_ENVELOPE)

        async def publish(payload: bytes) -> None:
            await network.publish(TOPIC, voice.seal(TOPIC, payload))

        nursery.start_soon(self.tell, publish)

    def _receive(self, voice: Voice, _: PeerId, envelope: bytes) -> bool:
        author, payload = voice.unseal(TOPIC, envelope)
        self.heard(author, payload, role=author_of(envelope).role)
        return True

    def heard(self, author: PeerId, payload: bytes, *, role: Role = "member") -> None:
        """Folds in what another node reports. Raises RemoteError."""
        self._demand.apply(read(author, payload, self._clock(), role=role))

    async def tell(self, publish: Callable[[bytes], Awaitable[None]]) -> None:
        """Publishes this node's reports until cancelled; nothing while nothing is wanted here."""
        while True:
            news = self._news
            await self._report(publish)
            with trio.move_on_after(GAP) if self._reporter.is_speaking else nullcontext():
                await news.wait()
            await trio.sleep(max(SETTLE, self._reporter.rest(self._clock())))

    async def _report(self, publish: Callable[[bytes], Awaitable[None]]) -> None:
        now = self._clock()
        self._demand.expire(now)
        self._reporter.adapt(len(self._demand))
        report = self._reporter.next(self._tally.rates(now), self._wishes(), now)
        if report is None:
            return
        try:
            await publish(encode(report))
        except MeshError as error:
            self._journal.warning("demand_failed", f"the demand was not reported: {error}")
