"""Whether a thing comes alone: then it is sent at once, and what comes in bursts is sent together.

Nobody can know what else will come in the same turn of the loop. So it goes by the last time: if
one thing came then, and nothing with it, one thing is expected now. The first of a burst may leave
alone where none was expected; the others of it, and the next burst, leave together.
"""

from __future__ import annotations

import math

TOGETHER = 0.002
"""Seconds within which things are taken to be of one turn."""


class Bursts:
    """What came when. The caller says the time."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._count = 0
        self._is_back = False

    def is_alone(self, now: float) -> bool:
        """Something comes now: whether it is likely the only thing of its turn."""
        if self._is_back:
            self._is_back = False
            return False
        if now - self._began < TOGETHER:
            self._count += 1
            return False
        was_alone = self._count == 1
        self._began, self._count = now, 1
        return was_alone

    def refused(self) -> None:
        """What came last could not be sent at once, and comes again: it counts once."""
        self._is_back = True
