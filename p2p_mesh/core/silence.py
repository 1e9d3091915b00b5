"""How long an engine that has something to do may be silent before somebody asks whether it
still lives. To ask is cheap, so the bound is a guess: only an engine that does not answer is ended.
"""

from __future__ import annotations

from collections.abc import Hashable

QUIET = 30.0
"""Seconds without any sign that are nothing unusual."""

TIMES = 20.0
"""So many times the longest silence that was followed by a sign are nothing unusual either."""

FORGETTING = 0.999
"""How much of the longest silence is left after each sign that follows."""

SLOW = 20.0
"""Tokens of a prompt that are read in a second, where nobody has measured."""

READING = 2.0
"""A prompt may take so many times what it should."""


class Silence:
    """Since when one engine has said nothing, while it had something to do."""

    def __init__(self) -> None:
        self._reading: dict[Hashable, float] = {}
        self._since = 0.0
        self._spent = 0.0  # silent seconds until there was nothing to do; they count on later
        self._longest = 0.0

    def begin(self, turn: Hashable, now: float, *, tokens: float, prefill: float) -> None:
        """The engine is asked something, and must read so many tokens first."""
        if not self._reading:
            self._since = now - self._spent
        self._reading[turn] = tokens / (prefill or SLOW)

    def hear(self, turn: Hashable, now: float) -> None:
        """A sign of life: part of an answer."""
        self._longest = max(FORGETTING * self._longest, now - self._since)
        if turn in self._reading:
            self._reading[turn] = 0.0
        self.lives(now)

    def lives(self, now: float) -> None:
        """The engine lives; it need not have said what it was asked for."""
        self._since, self._spent = now, 0.0

    def end(self, turn: Hashable, now: float) -> None:
        """It is asked this no longer."""
        del self._reading[turn]
        self._spent = now - self._since

    @property
    def patience(self) -> float:
        """Seconds that it may be silent now."""
        return max(QUIET, TIMES * self._longest) + READING * sum(self._reading.values())

    def is_long(self, now: float) -> bool:
        return bool(self._reading) and now - self._since > self.patience
