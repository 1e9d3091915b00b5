"""Whether what comes back is an answer to what was asked. Believes no peer beyond that."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from p2p_mesh.core.records import (
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    RerankQuery,
    Scores,
    Text,
    TokenizeQuery,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import RemoteError

SPARE_TOKENS = 256
"""Beyond twice what was asked for, an answer is a peer's fault: a guess may overshoot, and engines
count differently.
"""

ENDLESS = 1 << 20
"""Tokens of an answer, where neither the request nor what is known of its node sets an end."""


class Course:
    """What may still come of an answer: each choice up to its finish, and the usage at the end.
    `context` is how many tokens its node has room for; 0: nobody knows.
    """

    def __init__(self, request: InferenceRequest, context: int = 0) -> None:
        over = {one.choice for one in request.resume if one.finished}
        self._open = {*range(request.choices)} - over
        self._logprobs = request.logprobs
        asked = None if request.echo else request.max_tokens
        self._most = 2 * (context or ENDLESS if asked is None else asked) + SPARE_TOKENS
        self._grown = [0] * request.choices

    def expects(self, delta: Delta) -> bool:
        """Whether it is some more of a choice, and nothing else that `check` would look at."""
        return (
            delta.choice in self._open
            and delta.finish is None
            and delta.usage is None
            and not delta.logprobs
            and self._grown[delta.choice] + (len(delta.tokens) or 1) <= self._most
        )

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
