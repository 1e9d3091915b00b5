"""Which node answers a conversation, where nodes serve a model by shards of its experts.

Shards answer differently, and each node has read other prompts. So a conversation has a home:

1. Its session is what the client says (`prompt_cache_key`), else how it began: its messages up to
   the first of the user, or the first BEGINNING characters of a text. Rendezvous hashing of session
   and peer puts the nodes in an order on which all nodes agree; the first is its home.
2. Where one shard holds LESS of the routing mass than another, and neither is passed over by rule
   4, it comes after that one, whatever the hash says.
3. Both are guesses about a prompt that nobody has read. The first shard that reads a conversation
   weighs what its prompt needs, and where another shard holds more of that, it hands the
   conversation over. Where it was begun, it has settled: that shard comes before all others.
4. A node that would begin later than LATE times as late as the soonest shard, and DELAY more, is
   passed over for the next in the order: it is busy, or far, or must read much that another has
   read. When that is over, the conversation comes home. Suspects, and those with too little room,
   are passed over too.
5. Quality first: a node with the whole model is asked before all these where it would begin within
   WORTH times the time of the shard that would be asked, and DELAY more, and writes at least SLOWER
   times as fast as that, as far as both speeds are known. Else it is what is fallen back on, with
   the nodes that were passed over, the soonest first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping

from p2p_mesh.core.chain import written
from p2p_mesh.core.names import Digest, PeerId, RequestId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, Query, TextPrompt, TokenPrompt
from p2p_mesh.core.routing import Candidate, is_short, timed
from p2p_mesh.core.routing import rank as rank_by_time

BEGINNING = 1024
"""Characters of a text, or tokens, by which a conversation is known. One that has grown beyond them
stays where it is; before that, another node has read it in no time.
"""

MOST = 1 << 16
"""Bytes of the beginning of a chat that are hashed: pictures are long, and differ early."""

LESS = 0.02
"""Of the routing mass: so much less is worth leaving the order for. Closer than that, which of two
shards answers better hangs on the prompt more than on what was measured on other texts.
"""

LATE, DELAY = 2.0, 0.5
"""The delay in seconds. A conversation that moves is read from its beginning by another node, and
goes on in another manner: worth a wait that one hardly notices.
"""

WORTH, SLOWER = 1.5, 0.5
"""Of time and of speed: what the experts that a shard lacks are worth waiting for."""

MOST_SETTLED = 4096
"""Conversations of which this node remembers where they settled,"""
KEPT = 3600.0
"""and seconds for which it does, after their last request."""

Seconds = Mapping[Candidate, float]


def session(question: InferenceRequest | Query, given: str = "") -> bytes:
    """The conversation that a question belongs to. `given` is what the client calls it. All
    queries to one model are one: vectors of two shards should not be compared.
    """
    if given:
        return _hash(b"given", given.encode(errors="surrogatepass"))
    match question:
        case InferenceRequest(prompt=prompt):
            return _hash(b"begun", _beginning(prompt))
    return _hash(b"query", question.model.encode(errors="surrogatepass"))


def _beginning(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> bytes:
    match prompt:
        case TextPrompt():
            return written(prompt.text[:BEGINNING])
        case TokenPrompt():
            return written(prompt.tokens[:BEGINNING])
        case ChatPrompt():
            roles = [message.get("role") for message in prompt.messages]
            first = roles.index("user") if "user" in roles else 0
            return b"".join(map(written, prompt.messages[: first + 1]))[:MOST]


def _hash(kind: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16, person=kind).digest()


def score(session: bytes, peer: PeerId) -> bytes:
    """Rendezvous hashing: the node of the greatest score is the home of the session."""
    return hashlib.blake2b(peer.encode(), key=session, digest_size=16).digest()


class Settled:
    """Where conversations have settled: the file of the shard, so that a node which has gone over
    to other experts is a home no longer.
    """

    def __init__(self) -> None:
        self._shards: OrderedDict[bytes, tuple[Digest, float]] = OrderedDict()
        """By session, with the time of the last request; that one last."""

    def settle(self, session: bytes, shard: Digest, now: float) -> None:
        self._shards[session] = shard, now
        self._shards.move_to_end(session)
        if len(self._shards) > MOST_SETTLED:
            self._shards.popitem(last=False)

    def of(self, session: bytes, there: Container[Digest], now: float) -> Digest | None:
        """None where it has settled nowhere, or at a shard that is not there any longer."""
        shard, last = self._shards.get(session, (None, 0.0))
        if shard is None or shard not in there or now - last > KEPT:
            self._shards.pop(session, None)
            return None
        return shard


def rank(
    candidates: Iterable[Candidate], request: RequestId, prompt_tokens: int = 0
) -> tuple[Candidate, ...]:
    """The candidates, best first, by the rules above; where none has a shard, by time alone."""
    ranked = rank_by_time(candidates, request, prompt_tokens)
    able = [one for one in ranked if not (one.suspect or is_short(one, prompt_tokens))]
    seconds = dict(timed(ranked, prompt_tokens))
    homes = _homes([one for one in able if one.shard is not None], seconds)
    if not homes:
        return ranked
    worth = [one for one in able if one.shard is None and _is_worth(one, homes[0], seconds)]
    first = dict.fromkeys((*worth, *homes))
    return (*first, *(one for one in ranked if one not in first))


def _homes(shards: Iterable[Candidate], seconds: Seconds) -> tuple[Candidate, ...]:
    """The shards that are soon enough: where it has settled, and the others in the order of the
    session.
    """
    soonest = min((seconds[one] for one in shards), default=0.0)
    soon = [one for one in shards if seconds[one] <= LATE * soonest + DELAY]
    by_score = sorted(soon, key=lambda one: one.score, reverse=True)
    most = max(map(_mass, soon), default=0.0)
    return tuple(sorted(by_score, key=lambda one: (not one.settled, _mass(one) < most - LESS)))


def _is_worth(one: Candidate, home: Candidate, seconds: Seconds) -> bool:
    is_slow = 0 < one.speed < SLOWER * home.speed
    return not is_slow and seconds[one] <= WORTH * seconds[home] + DELAY


def _mass(one: Candidate) -> float:
    return one.shard.mass if one.shard else 1.0
