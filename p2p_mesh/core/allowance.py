"""How much somebody may do within some seconds, before the rest is ignored or refused."""

from __future__ import annotations

from math import inf

WITHIN = 10.0
"""Seconds that an allowance is meant for, where nothing else is said."""


class Allowance:
    """So many within so many seconds: all of them at once at most, and refilled evenly."""

    def __init__(self, most: int, within: float = WITHIN) -> None:
        self._most = float(most)
        self._within = within
        self._left = self._most
        self._at = -inf

    def take(self, now: float) -> bool:
        # A clock may be set back: nothing is lost by that.
        refill = max(0.0, now - self._at) * self._most / self._within
        self._left, self._at = min(self._most, self._left + refill), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
