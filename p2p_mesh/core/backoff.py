"""When to try again."""

from __future__ import annotations

from random import Random


def delay(attempt: int, rng: Random, *, first: float = 0.5, most: float = 60.0) -> float:
    """Seconds to wait before try number `attempt` (0 is the first repeat): doubling, between
    half and all of it by chance, so that many nodes do not come back at the same moment.
    """
    whole = min(most, first * 2.0 ** min(attempt, 32))
    return whole * (0.5 + rng.random() / 2)
