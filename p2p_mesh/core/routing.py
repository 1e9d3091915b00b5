"""Which models the mesh has, under which names, and which node a question goes to. Believes no peer
alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace

from p2p_mesh.core.names import Digest, ModelId, PeerId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    EmbedQuery,
    InferenceRequest,
    Query,
    RerankQuery,
    ServedModel,
    Shard,
)
from p2p_mesh.core.resumption import are_exact
from p2p_mesh.errors import ContextExceeded, MeshError, RequestError

PREFILL = 200.0
"""Tokens that are read in a second where nobody has measured: a small model on a CPU."""

SLOWEST = 0.01
"""No node reads slower, whatever it says of itself."""

WHOLE = 5.0
"""Seconds that an answer holds its slot where nobody has measured."""

ROUND_TRIP = 0.01
"""Seconds to a peer where nobody has measured: between a LAN's and a continent's."""

COMPANY = 0.1
"""Seconds that a full node must be ahead of an idle one. Its first token may come as soon; all
that follow come slower the more answers share its steps.
"""

NEARLY, NOISE = 1.1, 0.02
"""Within a tenth and 20 ms, two predictions are the same: so far apart are two measurements."""

GUESSED = 1.5
"""By this factor an estimate of a prompt's tokens may be too large."""


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


def whole(one: ServedModel | Candidate) -> Digest | None:
    """The digest of the model that it answers for: of the whole one, where it has a shard of its
    experts. Nodes of which this is equal serve one model.
    """
    return one.digest if one.shard is None else one.shard.model


def catalogue(servings: Iterable[Serving]) -> Mapping[ModelId, tuple[Serving, ...]]:
    """The names that a client can ask for, and who answers for each.

    A name means one file; the expert shards of a model count as that model, also where no node has
    it whole. Where nodes have different files under one name, the name means the file of this
    node, else the one that most nodes have, and each is also there as `name@<8 hex of its digest>`.
    A file whose digest is not known yet goes with the name.
    """
    by_id: defaultdict[ModelId, list[Serving]] = defaultdict(list)
    for serving in servings:
        by_id[serving.model.id].append(serving)
    names: dict[ModelId, tuple[Serving, ...]] = {}
    for name, group in by_id.items():
        counts = Counter(digest for one in group if (digest := whole(one.model)))
        meant = _meant(group, counts)
        names[name] = tuple(one for one in group if whole(one.model) in (None, meant))
        if len(counts) > 1:
            for digest in counts:
                exact = tuple(one for one in group if whole(one.model) == digest)
                names[ModelId(f"{name}@{digest[:8]}")] = exact
    return names


def _meant(group: Iterable[Serving], counts: Counter[Digest]) -> Digest | None:
    for one in group:
        if one.peer is None and (digest := whole(one.model)):
            return digest
    return min(counts, key=lambda digest: (-counts[digest], digest), default=None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that serves the wanted model, under the name `model`. `peer` is None for this node
    itself. Times in seconds.
    """

    peer: PeerId | None
    model: ModelId
    slots: int
    context: int = 0
    """Tokens that it has room for; 0: nobody knows."""
    active: int = 0
    """Requests of ours that it answers now, or that wait there."""
    suspect: bool = False
    _: KW_ONLY
    busy: int = 0
    """Requests that have a slot there, as it said last,"""
    queued: int = 0
    """those that wait for one,"""
    counted: int = 0
    """and how many of both were ours, when it said so."""
    prefill: float = 0.0
    """Tokens of prompts that it reads in a second; 0: nobody knows."""
    first: float = 0.0
    """What its last answers took from their slot to their first token; 0: nobody knows."""
    whole: float = 0.0
    """How long they held their slot; 0: nobody knows."""
    rtt: float = 0.0
    """Of a round trip; 0: nobody knows."""
    cached: float = 0.0
    """The share of the prompt that it has probably read already."""
    digest: Digest | None = None
    numerics: str = ""
    resumable: bool = True
    shard: Shard | None = None
    """It answers with a part of the model's experts."""
    score: bytes = b""
    """Of this node for the conversation (core/sessions.py); the greatest comes first."""
    settled: bool = False
    """The conversation has settled at this shard."""
    weighs: bool = False
    """It has settled nowhere: this shard may hand it over to another."""
    speed: float = 0.0
    """Tokens a second of one answer there; 0: nobody knows."""

    @property
    def ahead(self) -> int:
        """Requests that have a slot there or wait for one, by what it said and what we have sent
        since then.
        """
        return self.active + max(0, self.busy + self.queued - self.counted)

    @property
    def load(self) -> float:
        """How full its slots are, 0 to 1; what waits is beside that."""
        return min(1.0, self.ahead / max(self.slots, 1))


def predicted(candidate: Candidate, prompt_tokens: int) -> float:
    """Seconds to the first token of a prompt of about so many tokens there."""
    return (
        _waiting(candidate)
        + _reading(candidate, prompt_tokens)
        + _travelling(candidate)
        + COMPANY * candidate.load
    )


def _waiting(one: Candidate) -> float:
    """For a slot. Where all are taken, so many answers must end first, and they end one after
    the other, `slots` of them in the time that one takes.
    """
    slots = max(one.slots, 1)
    return max(0, one.ahead - slots + 1) * (one.whole or WHOLE) / slots


def _reading(one: Candidate, prompt_tokens: int) -> float:
    """Of what is not in its cache. Answers beside it share each step of the engine, so that a
    full one reads about half as fast. Where no speed is known, the prompts that it read last were
    like this one, as far as anybody knows.
    """
    if one.prefill or not one.first:
        seconds = prompt_tokens / max(SLOWEST, one.prefill or PREFILL)
    else:
        seconds = one.first
    return seconds * (1.0 - one.cached) * (1.0 + one.load)


def _travelling(one: Candidate) -> float:
    """The request there and the first token back: one round trip, on a stream that is open."""
    return 0.0 if one.peer is None else one.rtt or ROUND_TRIP


def rank(
    candidates: Iterable[Candidate], request: RequestId, prompt_tokens: int = 0
) -> tuple[Candidate, ...]:
    """The candidates, best first: those that will give the first token soonest.

    Whoever surely has too little room comes last, and before them the suspects. Measurements are
    noisy, so all that are about as soon as the soonest are equally good; of these, first whoever
    has read most of the prompt (a conversation stays where it is), then this node, which saves
    the mesh a stream, then the least loaded. Ties are broken by a hash of request and peer, so
    that requests spread.
    """
    found = timed(candidates, prompt_tokens)
    useful = (s for one, s in found if not (one.suspect or is_short(one, prompt_tokens)))
    late = min(useful, default=0.0) * NEARLY + NOISE

    def cost(pair: tuple[Candidate, float]) -> tuple[bool, bool, float, bool, bool, float, bytes]:
        one, seconds = pair
        return (
            is_short(one, prompt_tokens),
            one.suspect,
            seconds if seconds > late else 0.0,
            one.cached <= 0.5,
            one.peer is not None,
            one.load,
            hashlib.blake2b(f"{request}/{one.peer}".encode(), digest_size=8).digest(),
        )

    return tuple(one for one, _ in sorted(found, key=cost))


def timed(
    candidates: Iterable[Candidate], prompt_tokens: int
) -> tuple[tuple[Candidate, float], ...]:
    """Each candidate, and in how many seconds it will give its first token."""
    full = _completed(tuple(candidates))
    return tuple((one, predicted(known, prompt_tokens)) for one, known in full)


def is_short(one: Candidate, prompt_tokens: int) -> bool:
    """Whether the prompt surely has no room there, though its length is a guess."""
    return 0 < one.context * GUESSED < prompt_tokens


def _completed(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Candidate]]:
    """Each candidate, and itself with what is not known of it taken from the middle of the
    others: whoever is new is neither avoided nor run over.
    """
    prefill = _middle(one.prefill for one in candidates)
    whole = _middle(one.whole for one in candidates)
    rtt = _middle(one.rtt for one in candidates if one.peer is not None)
    for one in candidates:
        read = one.prefill or (0.0 if one.first else prefill)
        yield one, replace(one, prefill=read, whole=one.whole or whole, rtt=one.rtt or rtt)


def _middle(values: Iterable[float]) -> float:
    """The median of the values that are known; 0 where none is."""
    known = sorted(value for value in values if value)
    return known[len(known) // 2] if known else 0.0


def resumers(
    candidates: Iterable[Candidate],
    failed: Container[PeerId | None],
    *,
    broken: Candidate,
) -> tuple[Candidate, ...]:
    """Who may go on with an answer that broke there: the others that give token ids and have the
    same model, in the order they are given. But first those that have the same file and compute
    alike, since there the answer goes on as it would have; then others with the same file; and
    last those with other experts of the model, or all, which go on as well as they can.
    """
    model = whole(broken)
    able = [
        one
        for one in candidates
        if model is not None and whole(one) == model and one.resumable and one.peer not in failed
    ]
    return tuple(sorted(able, key=lambda one: _strangeness(one, broken)))


def _strangeness(one: Candidate, broken: Candidate) -> int:
    if one.digest is None or one.digest != broken.digest:
        return 2
    return int(one.numerics != broken.numerics)


def goes_on_exactly(broken: Candidate, other: Candidate) -> bool:
    """Whether an answer goes on there exactly as it would have where it broke."""
    is_same = other.peer == broken.peer and other.shard is None  # a shard may be another one now
    if other.digest is not None:
        is_same = other.digest == broken.digest
    return is_same and are_exact(broken.numerics, other.numerics)


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
