"""Which rows go into the next call of llama.cpp: the choice, and nothing else.

Theory of operation:

1. Every sequence that is writing gets its row, and rows for the tokens that were guessed for it, so
   that all answers grow at one pace.
2. While answers are written, prompts get as many rows as keep the step within STALL times a usual
   one. What that is, is measured as it goes (`Pace`): on a GPU hundreds, on a small CPU one or two.
3. Where more short prompts wait than answers are written, the prompts come first, in calls of
   BURST rows: whoever came in a crowd waits for the crowd, not for those who came before.
4. Where nobody writes, prompts fill the call, the oldest first.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

STALL = 2.25
"""Steps of usual length that a step with rows of a prompt in it may take; 3 are promised."""
SHORT = 1024
"""Rows of a prompt that is read out of turn when many wait."""
BURST = 128
"""Rows of prompts in a call of those."""

_GRID: tuple[int, ...] = tuple(
    sorted({*range(1, 9), *(1 << n for n in range(3, 15)), *(3 << n for n in range(2, 13))})
)
_SMOOTH = 0.2
_OUTLIER = 3.0


@dataclass(frozen=True, slots=True)
class Limits:
    rows: int = 512
    """Of one call, at most."""


EXACT = Limits(rows=48)
"""Measured: a row's logits are bit-equal in calls of up to 48 rows, on a CPU with flash attention,
if each sequence has a KV cache of its own (context.py)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one live sequence could feed now."""

    unread: int = 0
    """Tokens of its prompt that are not read; 0: it writes."""
    guessed: int = 0
    """Tokens that were guessed for it, to be verified."""
    most: int = 2**31
    """Rows that it can take in one call."""


class Pace:
    """How long a step takes, by the rows in it: of those that write, and all others. llama.cpp
    computes the two one after the other where each sequence has a cache of its own, so their times
    add up.
    """

    def __init__(self) -> None:
        self._writing: dict[int, float] = {}
        self._others: dict[int, float] = {}
        self._beside = 0
        """The most other rows that were measured beside writing ones."""

    def observe(self, writing: int, others: int, seconds: float) -> None:
        """A step took that long."""
        if not others:
            _blend(self._writing, writing, seconds)
            return
        usual = self.step(writing) if writing else 0.0
        if usual is not None:
            _blend(self._others, _below(others), max(seconds - usual, 0.0))
            self._beside = max(self._beside, _below(others) if writing else 0)

    def step(self, writing: int) -> float | None:
        """Seconds of a step in which so many write, and nothing else; None: not known yet."""
        return _between(self._writing, writing)

    def more(self, others: int) -> float | None:
        """Seconds that so many other rows add; None: not known yet."""
        one = self._writing.get(1)
        known = self._others if one is None else {0: one, **self._others}
        return _between(known, others) if others else 0.0

    def beside(self, writing: int) -> int:
        """Rows of prompts that keep the step within STALL. It grows by a step of the grid at a
        time, so that a wrong estimate is never far wrong.
        """
        usual = self.step(writing)
        if usual is None:
            return 1
        budget = (STALL - 1) * usual
        next_up = _GRID[bisect.bisect_right(_GRID, self._beside)]
        for rows in reversed(_GRID[: bisect.bisect_right(_GRID, next_up)]):
            if (self.more(rows) or 0.0) <= budget:
                return rows
        return 1


def compose(turns: Sequence[Turn], limits: Limits, pace: Pace) -> list[int]:
    """How many rows each sequence gets now. `turns` are in order of age."""
    counts = [0] * len(turns)
    room = limits.rows
    for place, turn in enumerate(turns):
        if not turn.unread:
            counts[place] = min(1 + turn.guessed, room)
            room -= counts[place]
    room = min(room, _prompt_rows(turns, limits, pace))
    for place, turn in enumerate(turns):
        if turn.unread and room:
            counts[place] = min(turn.unread, turn.most, room)
            room -= counts[place]
    return counts


def _prompt_rows(turns: Sequence[Turn], limits: Limits, pace: Pace) -> int:
    writing = sum(not turn.unread for turn in turns)
    if not writing:
        return limits.rows
    if sum(0 < turn.unread <= SHORT for turn in turns) > writing:
        return BURST
    return pace.beside(writing)


def _blend(known: dict[int, float], rows: int, seconds: float) -> None:
    """A moving average that one hiccup of the machine does not spoil."""
    old = known.get(rows)
    if old is None:
        known[rows] = seconds
    else:
        known[rows] = old + _SMOOTH * (min(seconds, _OUTLIER * old) - old)


def _below(rows: int) -> int:
    return _GRID[bisect.bisect_right(_GRID, rows) - 1]


def _between(known: dict[int, float], rows: int) -> float | None:
    """By the nearest known on both sides; beyond them in proportion."""
    if rows in known:
        return known[rows]
    if not known:
        return None
    under = max((one for one in known if one < rows), default=None)
    over = min((one for one in known if one > rows), default=None)
    if under is None:
        assert over is not None
        return known[over]
    if over is None:
        return known[under] * rows / under if under else known[under]
    share = (rows - under) / (over - under)
    return known[under] + share * (known[over] - known[under])
