"""Answers of engines without nodes, token by token, and how fast they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, Sampling, TokenPrompt
from p2p_mesh.serve.backend import Engine

PROMPT = (1, 300, 1300, 2300, 3300, 700, 1700, 2700)
"""The first one begins a text; what the others mean does not matter."""
PATIENCE = 300.0
"""Seconds until an answer must have ended."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How much of an answer is written. Whichever of a number of tokens and a time comes first: an
    engine that waits for its disk a second for each token need not do so for five minutes.
    """

    warm: int = 32
    """Tokens that do not count,"""
    warm_seconds: float = 15.0
    count: int = 256
    """and those that do."""
    seconds: float = 45.0


USUAL = Terms()


@dataclass(slots=True)
class Answer:
    """What came, and when."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    """What the engine told of its experts when each token came, where it tells that."""
    cache: float = 0.0
    """Bytes of experts that it had in memory at the end."""

    def began(self, terms: Terms) -> int:
        """The first token that counts."""
        return begin(self.times, terms)

    def rate(self, terms: Terms) -> float:
        """Tokens a second of those that count. RuntimeError where there is none."""
        return rate(self.times, terms)

    def hit_rate(self, terms: Terms) -> float:
        """The share of experts that were in memory, for the tokens that count."""
        told = self.hits[-(len(self.times) - self.began(terms)) :]
        return sum(told) / len(told) if told else 0.0


def begin(times: Sequence[float], terms: Terms) -> int:
    """Which token is the first that counts; as many as there are, where none does yet."""
    late = (place for place, time in enumerate(times, 1) if time - times[0] >= terms.warm_seconds)
    return min(terms.warm, len(times), next(late, len(times)))


def is_enough(times: Sequence[float], terms: Terms) -> bool:
    begun = begin(times, terms)
    if not 0 < begun < len(times):
        return False
    return len(times) - begun >= terms.count or times[-1] - times[begun - 1] >= terms.seconds


def rate(times: Sequence[float], terms: Terms) -> float:
    """Tokens a second of those that count. RuntimeError where there is none."""
    begun = begin(times, terms)
    if not 0 < begun < len(times):
        raise RuntimeError(f"{len(times)} tokens are too few")
    return (len(times) - begun) / (times[-1] - times[begun - 1])


async def write(engine: Engine, terms: Terms) -> Answer:
    """A greedy answer, always to the same prompt."""
    answer = Answer()
    request = InferenceRequest(
        id=RequestId("bench"),
        model=ModelId("bench"),
        prompt=TokenPrompt(tokens=PROMPT),
        sampling=Sampling(temperature=0),
        max_tokens=terms.warm + terms.count,
    )
    with trio.fail_after(PATIENCE):
        async with engine.generate(request) as deltas:
            async for delta in deltas:
                answer.tokens += delta.tokens
                answer.times += [trio.current_time()] * len(delta.tokens)
                measures = engine.describe().measures
                if "expert_hit_rate" in measures:
                    answer.hits += [measures["expert_hit_rate"]] * len(delta.tokens)
                if is_enough(answer.times, terms):
                    break
    answer.cache = engine.describe().measures.get("expert_cache_bytes", 0.0)
    return answer
