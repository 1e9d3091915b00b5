"""How busy the peers are, as they said last. What they said goes stale within seconds, how fast
they are does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelLoad

FRESH = 10.0
"""Seconds that a queue is believed to be as long as it was said to be."""


@dataclass(frozen=True, slots=True)
class _Said:
    at: float
    loads: dict[ModelId, ModelLoad]
    ours: Mapping[ModelId, int]


class PeerLoads:
    """The last word of each peer on each of its models."""

    def __init__(self) -> None:
        self._held: dict[PeerId, _Said] = {}

    def heard(
        self,
        peer: PeerId,
        loads: Iterable[ModelLoad],
        now: float,
        ours: Mapping[ModelId, int] = MappingProxyType({}),
    ) -> None:
        """A peer said, on the end of an answer or in a pong, how busy all its models are; `ours`
        of the requests for each are this node's.
        """
        self._held[peer] = _Said(now, {one.model: one for one in loads}, ours)

    def of(self, peer: PeerId, model: ModelId, now: float) -> ModelLoad | None:
        """What is known of a model there; with nobody in its queue where that is stale."""
        said = self._held.get(peer)
        load = said.loads.get(model) if said else None
        if said is not None and load is not None and now - said.at > FRESH:
            return msgspec.structs.replace(load, active=0, queued=0)
        return load

    def ours(self, peer: PeerId, model: ModelId) -> int:
        """How many of a model's requests there were this node's when the peer said so."""
        said = self._held.get(peer)
        return said.ours.get(model, 0) if said else 0

    def forget(self, peer: PeerId) -> None:
        self._held.pop(peer, None)
