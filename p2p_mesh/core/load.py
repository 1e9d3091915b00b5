"""How busy the peers are, as they said last. What they said goes stale within seconds, how fast
they are does not.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import ModelLoad

FRESH = 10.0
"""Seconds that a queue is believed to be as long as it was said to be."""


class PeerLoads:
    """The last word of each peer on each of its models."""

    def __init__(self) -> None:
        self._held: dict[PeerId, tuple[float, dict[ModelId, ModelLoad]]] = {}

    def heard(self, peer: PeerId, loads: Iterable[ModelLoad], now: float) -> None:
        """A peer said, on the end of an answer or in a pong, how busy all its models are."""
        self._held[peer] = now, {one.model: one for one in loads}

    def of(self, peer: PeerId, model: ModelId, now: float) -> ModelLoad | None:
        """What is known of a model there; with nobody in its queue where that is stale."""
        at, loads = self._held.get(peer, (0.0, {}))
        load = loads.get(model)
        if load is not None and now - at > FRESH:
            return msgspec.structs.replace(load, active=0, queued=0)
        return load

    def forget(self, peer: PeerId) -> None:
        self._held.pop(peer, None)
