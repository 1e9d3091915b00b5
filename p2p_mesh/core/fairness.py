"""Who has a slot of a model, who waits for one, and who is sent away.

An asker is a host or a peer, or a user of one (`host/user`). Who the user is, the host alone says.
So shares are of hosts, and users share what their host has.

1. A slot that is free goes to the next host in a ring, there to the next asker in a ring, and to
   the oldest request of that asker: first to an answer that broke elsewhere and goes on here, since
   its client has waited already. So whoever has one request waits for one round at most, however
   many others have.
2. The queue is bounded. Where it is full, a request comes in only at the cost of another: the
   newest of the host that has most of it. Where the newcomer's host would have as much of the queue
   itself, it is the newcomer that is sent away, or, by the same rule, one of another asker of that
   host. So nobody's flood keeps another out, under however many names, and nobody alone is kept
   from using the whole queue.
3. Answers that go on have a queue of their own, of three times the length: they are not sent
   away because of what is new, and no more than four times the bound wait in all.

Pure; serve/slots.py does the waiting.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

RESUMED = 3
"""Answers that go on may be so many times what is new in the queue."""


@dataclass(eq=False, slots=True)
class Turn:
    """One request, from when it comes until it is over."""

    asker: str
    is_resumed: bool
    state: Literal["waiting", "holding", "refused", "over"] = "waiting"

    @property
    def host(self) -> str:
        return self.asker.partition("/")[0]


@dataclass(slots=True)
class _Asker:
    """What one asker has in the queue, oldest first."""

    resumed: deque[Turn] = field(default_factory=deque)
    new: deque[Turn] = field(default_factory=deque)

    def of(self, is_resumed: bool) -> deque[Turn]:
        return self.resumed if is_resumed else self.new


@dataclass(slots=True)
class _Host:
    """The askers of one host that wait, in the order of their turns."""

    ring: OrderedDict[str, _Asker] = field(default_factory=OrderedDict)

    def count(self, is_resumed: bool) -> int:
        return sum(len(one.of(is_resumed)) for one in self.ring.values())

    def longest(self, is_resumed: bool) -> deque[Turn]:
        """What most of them is of one asker; of equal ones, that of who came last."""
        return max((one.of(is_resumed) for one in reversed(self.ring.values())), key=len)


class Turns:
    """The slots of a model, and the queue before them."""

    def __init__(self, slots: int, bound: int) -> None:
        self.slots = slots
        self.active = 0
        self._most = {False: bound, True: RESUMED * bound}
        self._waiting = {False: 0, True: 0}
        self._ring: OrderedDict[str, _Host] = OrderedDict()

    @property
    def queued(self) -> int:
        return sum(self._waiting.values())

    def join(self, asker: str, *, is_resumed: bool = False) -> tuple[Turn, Turn | None]:
        """The turn of a new request, and whose request was sent away for it, if any. Its state
        says whether it has a slot, waits, or was refused itself.
        """
        turn = Turn(asker, is_resumed)
        if self.active < self.slots:
            self.active += 1
            turn.state = "holding"
            return turn, None
        displaced = None
        if self._waiting[is_resumed] >= self._most[is_resumed]:
            displaced = self._greediest(turn)
            if displaced is None:
                turn.state = "refused"
                return turn, None
            self._remove(displaced, "refused")
        host = self._ring.setdefault(turn.host, _Host())
        host.ring.setdefault(asker, _Asker()).of(is_resumed).append(turn)
        self._waiting[is_resumed] += 1
        return turn, displaced

    def _greediest(self, turn: Turn) -> Turn | None:
        """The newest request of whoever has most of the queue; None where the asker of `turn`
        would have as much.
        """
        kind = turn.is_resumed
        host = self._ring.get(turn.host, _Host())
        largest = max(self._ring.values(), key=lambda one: one.count(kind))
        if largest.count(kind) > host.count(kind) + 1:
            return largest.longest(kind)[-1]
        own = host.ring.get(turn.asker, _Asker()).of(kind)
        longest = host.longest(kind) if host.ring else own
        return longest[-1] if len(longest) > len(own) + 1 else None

    def leave(self, turn: Turn) -> Turn | None:
        """The request is over, however far it came. Whose turn it is now, if a slot came free."""
        if turn.state == "waiting":
            self._remove(turn, "over")
        elif turn.state == "holding":
            turn.state = "over"
            return self._pass_on()
        return None

    def _pass_on(self) -> Turn | None:
        if not self._ring:
            self.active -= 1
            return None
        name, host = next(iter(self._ring.items()))
        asker, queue = next(iter(host.ring.items()))
        turn = (queue.resumed or queue.new)[0]
        self._remove(turn, "holding")
        if asker in host.ring:
            host.ring.move_to_end(asker)
        if name in self._ring:
            self._ring.move_to_end(name)
        return turn

    def _remove(self, turn: Turn, state: Literal["holding", "refused", "over"]) -> None:
        """Takes a turn out of the queue."""
        host = self._ring[turn.host]
        queue = host.ring[turn.asker]
        queue.of(turn.is_resumed).remove(turn)
        self._waiting[turn.is_resumed] -= 1
        if not (queue.resumed or queue.new):
            del host.ring[turn.asker]
        if not host.ring:
            del self._ring[turn.host]
        turn.state = state

    def clear(self) -> tuple[Turn, ...]:
        """Sends away all that wait; returns them."""
        waiting = tuple(
            turn
            for host in self._ring.values()
            for one in host.ring.values()
            for turn in (*one.resumed, *one.new)
        )
        for turn in waiting:
            turn.state = "refused"
        self._ring.clear()
        self._waiting = {False: 0, True: 0}
        return waiting
