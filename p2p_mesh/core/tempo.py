"""How fast a model answers on this node, from the answers that it gave."""

from __future__ import annotations

from dataclasses import dataclass

from p2p_mesh.core.records import Usage
from p2p_mesh.core.silence import Slack

LEARNING = 0.2
"""How much of the newest answer goes into a smoothed value."""

MOST = 86_400.0
FASTEST = 1e9
"""What records have room for (core/records.py, ModelLoad)."""

FEWEST_READ, FEWEST_WRITTEN = 32, 16
"""Tokens below which an answer says nothing of speed: most of its time goes to other things."""

CHANGED = 1.5
"""By this factor the speed must change before it is announced again, since each announcement
reaches every node,
"""
STEADY = 300.0
"""and so many seconds must have passed: it changes with the load, from minute to minute."""


@dataclass(slots=True)
class _Rate:
    """Tokens a second. Tokens and seconds are added up apart, so that long answers count most."""

    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.tokens += LEARNING * (tokens - self.tokens)
        self.seconds += LEARNING * (seconds - self.seconds)

    @property
    def value(self) -> float:
        return min(FASTEST, self.tokens / self.seconds) if self.seconds else 0.0


def _smoothed(known: float, new: float) -> float:
    new = min(MOST, new)
    return known + LEARNING * (new - known) if known else new


class Tempo:
    """Of one model. Lasts over the lives of its engine."""

    def __init__(self) -> None:
        self.first = 0.0
        """Seconds from a slot to the first token; 0: not known yet."""
        self.whole = 0.0
        """Seconds that a request holds its slot."""
        self.speed = 0.0
        """Tokens a second of one answer, as announced."""
        self.slack = Slack()
        self._reading = _Rate()
        self._writing = _Rate()
        self._announced_at = 0.0

    @property
    def prefill(self) -> float:
        """Tokens of prompts that are read in a second."""
        return self._reading.value

    def began(self, seconds: float) -> None:
        """So long after its slot, an answer's first token came."""
        self.first = _smoothed(self.first, seconds)

    def held(self, seconds: float) -> None:
        """A request gave its slot back after so long."""
        self.whole = _smoothed(self.whole, seconds)

    def read(self, tokens: int, seconds: float) -> None:
        if tokens >= FEWEST_READ:
            self._reading.add(tokens, seconds)

    def answered(self, usage: Usage, first: float, rest: float) -> None:
        """An answer is whole: its first token took `first` seconds, all others `rest`."""
        self.read(usage.prompt_tokens - usage.cached_tokens, first)
        if usage.completion_tokens >= FEWEST_WRITTEN:
            self._writing.add(usage.completion_tokens - 1, rest)

    def is_news(self, now: float) -> bool:
        """Whether the speed has become another, which is to be announced; if so, it is."""
        measured = self._writing.value
        steady = bool(self.speed) and now - self._announced_at < STEADY
        if not measured or steady or 1 / CHANGED < self.speed / measured < CHANGED:
            return False
        self.speed, self._announced_at = measured, now
        return True
