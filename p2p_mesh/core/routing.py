"""Which models the mesh has, under which names, and which node a request goes to."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import ServedModel


@dataclass(frozen=True, slots=True)
class Serving:
    """A node and a model that it answers for. `peer` is None for this node itself."""

    peer: PeerId | None
    model: ServedModel


def catalogue(servings: Iterable[Serving]) -> Mapping[ModelId, tuple[Serving, ...]]:
    """The names that a client can ask for, and who answers for each.

    A name means one file. Where nodes have different files under one name, the name means the
    file of this node, else the one that most nodes have, and each is also there as
    `name@<8 hex of its digest>`. A file whose digest is not known yet goes with the name.
    """
    by_id: defaultdict[ModelId, list[Serving]] = defaultdict(list)
    for serving in servings:
        by_id[serving.model.id].append(serving)
    names: dict[ModelId, tuple[Serving, ...]] = {}
    for name, group in by_id.items():
        counts = Counter(one.model.digest for one in group if one.model.digest)
        meant = _meant(group, counts)
        names[name] = tuple(one for one in group if one.model.digest in (None, meant))
        if len(counts) > 1:
            for digest in counts:
                exact = tuple(one for one in group if one.model.digest == digest)
                names[ModelId(f"{name}@{digest[:8]}")] = exact
    return names


def _meant(group: Iterable[Serving], counts: Counter[Digest]) -> Digest | None:
    for one in group:
        if one.peer is None and one.model.digest:
            return one.model.digest
    return min(counts, key=lambda digest: (-counts[digest], digest), default=None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that serves the wanted model, under the name `model`. `peer` is None for this node
    itself.
    """

    peer: PeerId | None
    model: ModelId
    slots: int
    context: int = 0
    """Tokens that it has room for."""
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
