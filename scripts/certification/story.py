"""What is asked of a whole model and of one in stages alike: a prompt in several calls, tokens one
after another, a second sequence beside, a step back, and a copy of a sequence.

Whoever plays it answers rows with logits. The next token is always the likeliest one, so a story
that differs in a token differs from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]

ROWS = 16
"""Of one call."""
CONTEXT, SLOTS = 128, 2
SHORT, LONG = 12, 60
"""Tokens of a prompt; the long one is longer than the fixtures' sliding windows (32)."""
BACK = 3
"""Tokens that are taken back."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one sequence, of which the last `answered` are answered."""

    slot: int
    position: int
    tokens: Sequence[int]
    answered: int = 1


@dataclass(frozen=True, slots=True)
class Rules:
    """What the whole model's memory allows."""

    remembers: bool
    trims: bool
    """It can take back the last tokens that it read."""


class Player(Protocol):
    def read(self, parts: Sequence[Part]) -> list[Logits]:
        """Computes a call; the logits of its answered rows, in their order."""
        ...

    def trim(self, slot: int, position: int) -> None: ...

    def save(self, slot: int) -> Any: ...

    def restore(self, slot: int, state: Any) -> None: ...

    def copy(self, source: int, slot: int) -> None: ...


def prompt(count: int, vocabulary: int, seed: int) -> list[int]:
    """Tokens by chance; the first ones of a vocabulary are often special."""
    drawn = np.random.default_rng(seed).integers(3, vocabulary - 1, count)
    return [int(token) for token in drawn]


def tell(player: Player, rules: Rules, *, vocabulary: int, length: int) -> list[Logits]:
    """The logits of all rows that the story asks for."""
    if not rules.remembers:
        return _glances(player, vocabulary)
    return _Story(player, rules, vocabulary, length).tell()


def _glances(player: Player, vocabulary: int) -> list[Logits]:
    """A model without a memory sees what is in the call, and nothing else."""
    one, other = prompt(SHORT, vocabulary, 1), prompt(ROWS - SHORT, vocabulary, 2)
    alone = player.read([Part(0, 0, one, len(one))])
    return alone + player.read([Part(0, 0, one, len(one)), Part(1, 0, other, len(other))])


class _Story:
    def __init__(self, player: Player, rules: Rules, vocabulary: int, length: int) -> None:
        self._player, self._rules = player, rules
        self._vocabulary, self._length = vocabulary, length
        self._told: list[Logits] = []
        self._at = [0, 0]
        """Where the next token of each sequence stands."""
        self._next = [0, 0]

    def tell(self) -> list[Logits]:
        for start in range(0, self._length, ROWS):
            whole = prompt(self._length, self._vocabulary, 1)
            self._read((0, whole[start : start + ROWS]))
        for _ in range(4):
            self._read((0, [self._next[0]]))
        self._read((0, [self._next[0]]), (1, prompt(7, self._vocabulary, 2)))
        mark, state = self._at[0], self._player.save(0)
        for _ in range(BACK):
            self._read((0, [self._next[0]]), (1, [self._next[1]]))
        self._go_back(mark, state)
        # A window of guesses: all of its rows are answered.
        self._read((0, prompt(4, self._vocabulary, 3)), (1, [self._next[1]]), answered=4)
        self._read((0, [self._next[0]]), (1, [self._next[1]]))
        self._player.copy(0, 1)
        self._at[1] = self._at[0]
        self._read((0, prompt(1, self._vocabulary, 4)), (1, prompt(2, self._vocabulary, 5)))
        return self._told

    def _read(self, *given: tuple[int, list[int]], answered: int = 1) -> None:
        parts = [Part(slot, self._at[slot], tokens, min(answered, len(tokens)))
                 for slot, tokens in given]  # fmt: skip
        found = self._player.read(parts)
        self._told += found
        for part in parts:
            last = found[part.answered - 1]
            found = found[part.answered :]
            self._at[part.slot] += len(part.tokens)
            self._next[part.slot] = int(last.argmax())

    def _go_back(self, mark: int, state: Any) -> None:
        if self._rules.trims:
            self._player.trim(0, mark)
        else:
            self._player.restore(0, state)
        self._at[0] = mark


def difference(told: Sequence[Logits], right: Sequence[Logits]) -> float:
    """The largest one, relative to the largest logit; infinite where they cannot be compared."""
    if len(told) != len(right) or not all(np.isfinite(one).all() for one in (*told, *right)):
        return float("inf")
    return max(
        float(np.abs(one - other).max() / (np.abs(other).max() or 1.0))
        for one, other in zip(told, right, strict=True)
    )
