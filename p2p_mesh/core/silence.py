"""How long an engine that has something to do may be silent before somebody asks whether it
still lives. To ask is cheap, so the bound is a guess: only an engine that does not answer is ended.

What is to be read takes its time, in which the engine may not even answer. So that time is allowed
for beside: no long prompt makes an engine seem slow ever after. Where the guess was wrong, the next
engine of the model has more time, else a slow one would be ended again and again.
"""

from __future__ import annotations

from collections.abc import Hashable

QUIET = 30.0
"""Seconds without any sign that are nothing unusual."""

TIMES = 20.0
"""So many times the longest silence that was followed by a sign are nothing unusual either,"""

MOST = 120.0
"""up to so many seconds."""

FORGETTING = 0.999
"""How much of the longest silence is left after each sign that follows."""

READING = 2.0
"""A prompt may take so many times what it should."""

SLOWEST = 1.0
"""Tokens of a prompt that are read in a second, where nobody has measured,"""

FIRST = 600.0
"""and the seconds that one may take then at most."""

MORE = 4.0
MOST_SLACK = 16.0


class Slack:
    """So many times longer than usual an engine may be silent: more after each that was ended for
    its silence, until as much was read as was asked of that one. Lasts over the lives of engines.
    """

    def __init__(self) -> None:
        self.times = 1.0
        self._unread = 0.0

    def ended(self, tokens: float) -> None:
        """An engine was ended that had been silent over a prompt of so many tokens."""
        self.times = min(MOST_SLACK, MORE * self.times)
        self._unread = tokens

    def read(self, tokens: float) -> None:
        """A prompt of so many tokens was answered."""
        if tokens >= self._unread:
            self.times = 1.0


class Silence:
    """Since when one engine has said nothing, while it had something to do."""

    def __init__(self, slack: Slack) -> None:
        self._slack = slack
        self._unread: dict[Hashable, float] = {}
        """Tokens that are still to be read, of each turn."""
        self._allowed: dict[Hashable, float] = {}
        """Seconds for that."""
        self._since = 0.0
        self._spent = 0.0  # silent seconds until there was nothing to do; they count on later
        self._longest = 0.0

    def begin(self, turn: Hashable, now: float, *, tokens: float, prefill: float) -> None:
        """The engine is asked something, and must read so many tokens first."""
        if not self._unread:
            self._since = now - self._spent
        self._unread[turn] = tokens
        known = READING * tokens / prefill if prefill else min(FIRST, tokens / SLOWEST)
        self._allowed[turn] = known

    def hear(self, turn: Hashable, now: float) -> None:
        """A sign of life: part of an answer."""
        beyond = now - self._since - sum(self._allowed.values())
        self._longest = min(MOST / TIMES, max(FORGETTING * self._longest, beyond))
        if self._unread.get(turn):
            self._slack.read(self._unread[turn])
            self._unread[turn] = self._allowed[turn] = 0.0
        self.lives(now)

    def lives(self, now: float) -> None:
        """The engine lives; it need not have said what it was asked for."""
        self._since, self._spent = now, 0.0

    def end(self, turn: Hashable, now: float) -> None:
        """It is asked this no longer."""
        del self._unread[turn], self._allowed[turn]
        self._spent = now - self._since

    def give_up(self) -> None:
        """The engine is ended for its silence."""
        self._slack.ended(max(self._unread.values(), default=0.0))

    @property
    def patience(self) -> float:
        """Seconds that it may be silent now."""
        usual = max(QUIET, TIMES * self._longest)
        return self._slack.times * (usual + sum(self._allowed.values()))

    def is_long(self, now: float) -> bool:
        return bool(self._unread) and now - self._since > self.patience
