"""Which node a request goes to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from p2p_mesh.core.names import PeerId, RequestId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that serves the wanted model. `peer` is None for this node itself."""

    peer: PeerId | None
    slots: int
    active: int = 0
    """Requests of ours that it answers now."""
    suspect: bool = False


def rank(candidates: Iterable[Candidate], request: RequestId) -> tuple[Candidate, ...]:
    """The candidates, best first.

    Suspects come last. Whoever has a free slot comes before whoever would queue the request;
    among those this node comes first, since it saves a round trip, then the least loaded. Ties
    are broken by a hash of request and peer, so that requests spread.
    """
    return tuple(sorted(candidates, key=lambda one: _cost(one, request)))


def _cost(one: Candidate, request: RequestId) -> tuple[bool, bool, bool, float, bytes]:
    load = one.active / max(one.slots, 1)
    spread = hashlib.blake2b(f"{request}/{one.peer}".encode(), digest_size=8).digest()
    return one.suspect, load >= 1.0, one.peer is not None, load, spread
