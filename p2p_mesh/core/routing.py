"""Which models the mesh has, under which names, which node a question goes to, and whether what
comes back is an answer to it. Believes no peer alone, and no peer beyond what was asked.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    RerankQuery,
    Scores,
    ServedModel,
    Text,
    TokenizeQuery,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import ContextExceeded, MeshError, RemoteError, RequestError

SPARE_TOKENS = 256
"""Beyond twice what was asked for, an answer is a peer's fault: a guess may overshoot, and engines
count differently.
"""


def needs(question: InferenceRequest | Query) -> frozenset[str]:
    """The capabilities without which a model cannot answer this."""
    match question:
        case InferenceRequest(prompt=ChatPrompt() as prompt):
            return frozenset({"generate", *_senses(prompt)})
        case InferenceRequest():
            return frozenset({"generate"})
        case EmbedQuery():
            return frozenset({"embed"})
        case RerankQuery():
            return frozenset({"rerank"})
    return frozenset()  # whatever has a vocabulary can tokenize


def _senses(prompt: ChatPrompt) -> Iterator[str]:
    for message in prompt.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image_url":
                yield "vision"
            elif kind == "input_audio":
                yield "audio"


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
    """Tokens that it has room for; 0: nobody knows."""
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


def promising(
    left: Sequence[Candidate], candidate: Candidate, failures: Sequence[MeshError]
) -> Sequence[Candidate]:
    """Who is still worth asking. That a question is wrong is believed of this node, and of two
    others: not of one peer alone.
    """
    wrong = sum(isinstance(error, RequestError) for error in failures)
    is_second = candidate.peer is None or wrong > 1
    match failures[-1]:
        case ContextExceeded() if is_second:
            return [one for one in left if not one.context or one.context > candidate.context]
        case RequestError() if is_second:
            return ()
    return left


class Course:
    """What may still come of an answer: each choice up to its finish, and the usage at the end."""

    def __init__(self, request: InferenceRequest) -> None:
        over = {one.choice for one in request.resume if one.finished}
        self._open = {*range(request.choices)} - over
        self._logprobs = request.logprobs
        self._most: float = math.inf
        if request.max_tokens is not None and not request.echo:
            self._most = 2 * request.max_tokens + SPARE_TOKENS
        self._grown = [0] * request.choices

    def check(self, delta: Delta) -> None:
        """Raises RemoteError for what was not asked for."""
        if delta.choice in self._open:
            self._measure(delta)
            if delta.finish is not None:
                self._open.remove(delta.choice)
        elif delta.usage is None or delta != Delta(choice=delta.choice, usage=delta.usage):
            raise RemoteError("an answer with a choice that was not asked for, or had ended")
        if delta.usage is not None and self._open:
            raise RemoteError("an answer that ended before its choices had")

    def _measure(self, delta: Delta) -> None:
        # An engine that gives no token ids sends about one delta for each.
        self._grown[delta.choice] += len(delta.tokens) or 1
        if self._grown[delta.choice] > self._most:
            raise RemoteError("an answer of far more tokens than were asked for")
        if delta.logprobs and (
            self._logprobs is None or any(len(one.top) > self._logprobs for one in delta.logprobs)
        ):
            raise RemoteError("an answer with log-probabilities that were not asked for")


def answers(reply: Reply, query: Query) -> bool:
    """Whether the reply is one to this query, with as much in it."""
    match query, reply:
        case EmbedQuery(), Vectors():
            return len(reply.vectors) == len(query.inputs) and _are_vectors(reply.vectors)
        case RerankQuery(), Scores():
            return len(reply.scores) == len(query.documents) and all(
                map(math.isfinite, reply.scores)
            )
        case TokenizeQuery(), Tokens():
            has_pieces = query.with_pieces or bool(reply.pieces)
            return not has_pieces or len(reply.pieces) == len(reply.tokens)
        case DetokenizeQuery(), Text():
            return True
    return False


def _are_vectors(vectors: Sequence[bytes]) -> bool:
    """Whether they are as long as one another, and of finite numbers."""
    size = len(vectors[0])
    if not size or size % 4 or any(len(vector) != size for vector in vectors):
        return False
    read = struct.Struct(f"<{size // 4}f").unpack
    return all(math.isfinite(sum(read(vector))) for vector in vectors)
