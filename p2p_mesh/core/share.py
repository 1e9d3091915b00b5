"""Who may take one more of a few things that all share, such as the streams to a peer."""

from __future__ import annotations

from collections import Counter


class Share:
    """`limit` things. Half of them go to whoever comes; of the rest nobody takes more than an
    equal part of all. So one who takes much leaves room for those who come later. The users of a
    host (`host/user`) are one asker, since a host says by itself who they are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return self._taken.total()

    def take(self, asker: str) -> bool:
        """Whether it got one."""
        asker = asker.partition("/")[0]
        part = self._limit / len(self._taken.keys() | {asker})
        is_scarce = self.total >= self._limit // 2
        if self.total >= self._limit or (is_scarce and self._taken[asker] >= part):
            return False
        self._taken[asker] += 1
        return True

    def give(self, asker: str) -> None:
        """Gives back what it had taken."""
        asker = asker.partition("/")[0]
        self._taken[asker] -= 1
        if not self._taken[asker]:
            del self._taken[asker]
