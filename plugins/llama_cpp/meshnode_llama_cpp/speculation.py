"""Guessing tokens before they are computed: what to guess, and whether it pays. Pure.

A guess is verified in the call that computes the next token anyway. Every token is drawn by its
position's own generator, guessed or not: an answer with guesses is the one without.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode_llama_cpp.scheduler import Pace

MOST = 8
"""Tokens guessed at a time."""
_GRAM = 3
LOOKED_UP, DRAFTED = 0.6, 0.9
"""How often a guess is right, before one was put to the test: what a sequence has written before,
and a model that was given for the purpose. Too little hope is never corrected.
"""
_SMOOTH = 0.1
_RETRY = 64
"""Tokens after which guessing is tried again where it did not pay: of what a guess is worth, and
of what it costs, nothing is learned without.
"""


class Lookup:
    """Guesses from a sequence's own tokens: what followed the last time."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        known = self._tokens
        for token in tokens:
            if len(known) >= _GRAM:
                self._after[tuple(known[-_GRAM:])] = len(known)
            known.append(token)

    def guess(self, most: int) -> list[int]:
        """What may come next; nothing where these last tokens are new."""
        if len(self._tokens) < _GRAM:
            return []
        start = self._after.get(tuple(self._tokens[-_GRAM:]))
        return [] if start is None else self._tokens[start : start + most]


class Hope:
    """How often the guesses for one sequence were right, and whether the next ones pay."""

    def __init__(self, first: float = LOOKED_UP) -> None:
        self._share = first
        self._silent = 0

    def observe(self, guessed: int, right: int) -> None:
        """Of so many guesses the first so many were right; those after the first wrong one were
        never put to the test.
        """
        for place in range(min(guessed, right + 1)):
            self._share += _SMOOTH * ((place < right) - self._share)

    def count(self, offered: int, writing: int, pace: Pace, *, each: float = 0.0) -> int:
        """How many of the offered guesses are worth their rows: those that make tokens faster
        than steps without any would. `each`: seconds that a guess itself takes.
        """
        usual = pace.step(writing)
        if usual is None or not offered:
            return 0
        best, gain = 0, 0.0
        for count in range(1, min(offered, MOST) + 1):
            more = pace.guessing(count)
            if more is None:
                return 1  # not measured yet: one guess will tell
            worth = self._tokens(count) - writing * (more + count * each) / usual
            if worth > gain:
                best, gain = count, worth
        return best or self._again()

    def _tokens(self, count: int) -> float:
        """Tokens that so many guesses bring, on average."""
        return float(sum(self._share**place for place in range(1, count + 1)))

    def _again(self) -> int:
        self._silent += 1
        if self._silent < _RETRY:
            return 0
        self._silent = 0
        return 1
