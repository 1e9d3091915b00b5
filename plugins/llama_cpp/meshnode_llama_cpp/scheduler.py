"""Which rows go into the next call of llama.cpp: the choice, and nothing else.

Theory of operation:

1. Every sequence that is writing gets its row, so that all answers grow at one pace; rows for the
   tokens that were guessed come after those, and after those of prompts.
2. While answers are written, a long prompt gets as many rows as keep the step within STALL times a
   usual one. What that is, is measured as it goes (`Pace`): on a GPU hundreds, on a small CPU one
   or two. A usual step takes longer as the answers grow, so that one in AGAIN is for them alone.
   While steps are SLOW all are: the machine has other things to do. That what is usual is more
   now is believed only after some of them.
3. A prompt that takes less than HICCUP to read is read at once, BURST rows a call, and so are all
   short ones where more of them wait than answers are written: whoever came in a crowd waits for
   the crowd, not for those who came before.
4. Where nobody writes, prompts fill the call, the oldest first. What is left over when a prompt is
   cut into calls is read first, while there is little before it: llama.cpp takes the attention of
   fewer than 64 rows row by row, and of more in tiles, which is many times as fast.
5. Where not all who write go into one call, those go together whose slots follow each other:
   llama.cpp computes such a run at once, and one run after the other. So they are in groups by
   slot, and a group goes when all of it can.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STALL = 1.9
"""Steps of usual length that a step with rows of a long prompt may take. 3 are promised: the rest
is for what else a machine does, which makes one step in a hundred half as long again.
"""
HICCUP = 0.5
"""Seconds that answers may wait for a prompt that is read at once."""
SHORT = 1024
"""Tokens of a prompt that is read out of turn when many wait."""
BURST = 128
"""Rows in a call of those that are read at once."""
SLOW = 1.3
"""By this factor longer than it should a step took: the machine has other things to do just now,
and the next step is for the answers alone.
"""
AGAIN = 32
"""Steps with rows of a long prompt, after which one without them shows what is usual now."""

_GRID: tuple[int, ...] = tuple(
    sorted({*range(1, 9), *(1 << n for n in range(3, 15)), *(3 << n for n in range(2, 13))})
)
_SMOOTH, _RISE = 0.2, 0.12
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
    """Tokens of its prompt that can be read now; 0: it writes."""
    whole: int = 0
    """Tokens of its prompt that were to be read when it came."""
    guessed: int = 0
    """Tokens that were guessed for it, to be verified."""
    most: int = 2**31
    """Rows that it can take in one call."""


class Pace:
    """How long a step takes, by the rows in it: of those that write, and all others. llama.cpp
    computes the two one after the other where each sequence has a cache of its own, so their times
    add up. Guesses are rows of those that write, and take other times than those of prompts.

    What rows take grows with what their sequences hold. So what was learned of some goes, in
    proportion, for all: of some rows of a prompt for other numbers of them, and of answers for
    guesses.
    """

    def __init__(self) -> None:
        self._writing: dict[int, float] = {}
        self._read: dict[int, float] = {}
        self._guessed: dict[int, float] = {}
        self._hinted: dict[int, float] = {}
        """What guesses may take, before any was made: as much as rows of a prompt read alone."""
        self._beside = 0
        """The most rows of prompts that were measured beside writing ones."""
        self._since = 0
        """Steps since one had none."""
        self._is_slow = False
        """The last step took longer than it should."""
        self.delay = 0.0
        """Seconds of a step that do not depend on its rows."""

    def observe(self, writing: int, read: int, guessed: int, seconds: float) -> None:
        """A step took that long."""
        self._since = self._since + 1 if read else 0
        usual = self.step(writing) if writing else 0.0
        self._is_slow = bool(usual) and seconds > SLOW * (
            (usual or 0.0) + (self.reading(read) or 0.0) + (self.guessing(guessed) or 0.0)
        )
        if not read and not guessed:
            grown = _blend(self._writing, writing, seconds, rise=_RISE)
            for known in (self._guessed, self._hinted):
                for rows in known:
                    known[rows] *= grown
            return
        if usual is None:
            return
        more = max(seconds - usual, 0.0)
        if not read:
            _learn(self._guessed, _below(guessed), more)
            return
        rows = _below(read)
        _learn(self._read, rows, more)
        if writing:
            self._beside = max(self._beside, rows)
        else:  # those of guesses too are rows of one sequence
            _blend(self._hinted, rows, more)

    def step(self, writing: int) -> float | None:
        """Seconds of a step in which so many write, and nothing else; None: not known yet."""
        return _between(self._writing, writing)

    def reading(self, rows: int) -> float | None:
        """Seconds that so many rows of prompts add; None: not known yet."""
        return self._more(self._read, rows)

    def guessing(self, rows: int) -> float | None:
        """Seconds that so many guesses add; None: not known yet."""
        return self._more(self._guessed or self._hinted, rows)

    def _more(self, known: Mapping[int, float], rows: int) -> float | None:
        one = self._writing.get(1)
        if one is not None:
            known = {0: max(one - self.delay, 0.0), **known}
        return _between(known, rows) if rows else 0.0

    def beside(self, writing: int) -> int:
        """Rows of prompts that keep the step within STALL; at times none. It grows by a step of
        the grid at a time, so that a wrong estimate is never far wrong.
        """
        if self._since >= AGAIN or self._is_slow:
            return 0
        usual = self.step(writing)
        if usual is None:
            return 1
        budget = (STALL - 1) * usual
        next_up = _GRID[bisect.bisect_right(_GRID, self._beside)]
        for rows in reversed(_GRID[: bisect.bisect_right(_GRID, next_up)]):
            if (self.reading(rows) or 0.0) <= budget:
                return rows
        return 1


def compose(turns: Sequence[Turn], limits: Limits, pace: Pace) -> list[int]:
    """How many rows each sequence gets now. `turns` are in order of age."""
    counts = [0] * len(turns)
    writing = [place for place, turn in enumerate(turns) if not turn.unread]
    room = limits.rows
    for place in writing[:room]:
        counts[place] = 1
    room -= sum(counts)
    places, rows = _prompts(turns, len(writing), limits, pace)
    room = min(room, rows)
    for place in places:
        unread = turns[place].unread
        is_alone = room == limits.rows
        counts[place] = min(_portion(unread, room) if is_alone else unread, turns[place].most, room)
        room -= counts[place]
    for place in writing:
        more = min(turns[place].guessed, room) if counts[place] else 0
        counts[place] += more
        room -= more
    return counts


def _portion(unread: int, room: int) -> int:
    """So many that those after them fill their calls."""
    return min(unread, unread % room or room)


def group(fed: Sequence[int | None], together: int, calls: int) -> list[int] | None:
    """Which of those who write go into the next call; None where it is too early for one. `fed`
    are the numbers of the calls in which they went last, by their slots; None for one that has not
    come back. `calls`: those that are on their way.
    """
    groups = [range(start, min(start + together, len(fed)))
              for start in range(0, len(fed), together)]  # fmt: skip
    back = [[place for place in one if fed[place] is not None] for one in groups]
    whole = [one for one, all_of_it in zip(back, groups, strict=True) if len(one) == len(all_of_it)]
    if whole:
        return min(whole, key=lambda one: min(fed[place] or 0 for place in one))
    most = max(back, key=len)
    return most if most and calls < len(groups) else None


def _prompts(
    turns: Sequence[Turn], writing: int, limits: Limits, pace: Pace
) -> tuple[list[int], int]:
    """Which prompts are read now, and in how many rows all together."""
    reading = [place for place, turn in enumerate(turns) if turn.unread]
    if not writing or not reading:
        return reading, limits.rows
    quick = [place for place in reading if _is_quick(turns[place], pace)]
    if quick:
        return quick, BURST
    short = [place for place in reading if turns[place].whole <= SHORT]
    if len(short) > writing:
        return short, BURST
    return reading, pace.beside(writing)


def _is_quick(turn: Turn, pace: Pace) -> bool:
    seconds = pace.reading(turn.whole)
    return turn.whole <= BURST if seconds is None else seconds <= HICCUP


def _blend(known: dict[int, float], rows: int, seconds: float, *, rise: float = _SMOOTH) -> float:
    """A moving average that one hiccup of the machine does not spoil; by which factor it grew.
    `rise`: of what is more, the share that is believed.
    """
    old = known.get(rows)
    if not old:
        known[rows] = seconds
        return 1.0
    more = min(seconds, _OUTLIER * old) - old
    known[rows] = old + (rise if more > 0 else _SMOOTH) * more
    return known[rows] / old


def _learn(known: dict[int, float], rows: int, seconds: float) -> None:
    """What these rows took, and in proportion all others."""
    grown = _blend(known, rows, seconds)
    for other in known:
        known[other] *= 1.0 if other == rows else grown


def _below(rows: int) -> int:
    return _GRID[bisect.bisect_right(_GRID, rows) - 1]


def _between(known: Mapping[int, float], rows: int) -> float | None:
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
