"""Who answers: whom to ping when, and who is suspect (specs/health/README.md).

Theory of operation:

1. A peer that was used within the last minute is pinged every second. Of the others that are
   connected, each in its turn by chance, one every few seconds.
2. A pong, or any frame of an answer, is a sign of life. A peer in use that has given none for
   SILENCE is suspect, any other one when a ping of its own was not answered in time. A connection
   that closed, or a ping that could not be sent, makes its peer suspect at once.
3. A suspect is pinged on, ever less often, and trusted again at its next sign of life. One that
   is silent for long loses its connection, so that a new one can be made. One that is heard of no
   more is forgotten.
4. What another node says is checked by a ping, never believed.
5. Time in which this node itself did nothing (it was stopped, or its machine was) counts for
   nobody: all that is measured here, is measured on a clock that stands still meanwhile.

Pure: the caller says what happened and when, and performs the actions that it gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random
from typing import Annotated

from msgspec import Meta

from p2p_mesh.core.allowance import Allowance
from p2p_mesh.core.backoff import delay
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.wire import Loads, Message

TICK = 0.5
"""Seconds between two looks at everybody who is watched closely."""

STALL = 1.5
"""Seconds without a look, after which it was this node that stood still."""

IN_USE = 60.0
PING_EVERY = 1.0
"""Seconds between two pings of a peer in use,"""
OTHERS_EVERY = 2.5
"""and of any other, as long as that reaches each of them within"""
ROUND = 120.0

SILENCE = 3.0
"""Seconds without a sign of life, after which a peer in use is suspect;"""
DOUBTED_SILENCE = 2.0
"""without an answer to a ping, where there was reason to doubt,"""
IDLE_SILENCE = 5.0
"""and where there was none."""
FAIR = 1.0
"""Seconds that every peer has for the answer to a ping, however long it said nothing before."""

FRESH = 30.0
"""Seconds after a sign of life, in which a peer is used without being asked first."""

HOPELESS = 15.0
"""Seconds of silence after which a connection is given up."""

FORGET = 3600.0
"""Seconds after which nobody looks for a suspect that nobody has heard of."""

LONGEST_WAIT = 30.0
"""Seconds between two pings of a suspect, at most."""

HINTS_SENT = 8
HINTS_TAKEN = 16
PINGS_TAKEN = 64
"""In ten seconds: hints that are given, hints of one peer that are checked, and messages on one
stream that are taken.
"""

_SMOOTHING = 0.25

Number = Annotated[int, Meta(ge=0, le=2**53)]


class Ping(Message, frozen=True, kw_only=True, tag="ping"):
    """Asks for a sign of life."""

    number: Number


class Pong(Message, frozen=True, kw_only=True, tag="pong"):
    """The answer to the ping of that number."""

    number: Number
    load: Loads = ()


class Down(Message, frozen=True, kw_only=True, tag="down"):
    """A hint: the sender thinks that this peer is gone."""

    peer: Annotated[PeerId, Meta(min_length=1, max_length=128)]


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping it now, connecting first where that must be."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Suspect:
    peer: PeerId
    reason: str
    is_told: bool
    """Whether the neighbours are to hear of it."""


@dataclass(frozen=True, slots=True)
class Revive:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Drop:
    """Close its connections: nothing comes by them."""

    peer: PeerId


Action = Probe | Suspect | Revive | Drop
Actions = tuple[Action, ...]


@dataclass(slots=True)
class _Watched:
    peer: PeerId
    is_member: bool = True
    is_connected: bool = False
    is_doubted: bool = False
    sign: float = -inf
    """When it last gave a sign of life."""
    uses: int = 0
    """What this node has under way with it."""
    used: float = -inf
    since: float = -inf
    """When it came into use."""
    asked: float = inf
    """When the first ping was sent that nothing has answered."""
    due: float = inf
    suspect: float = inf
    """Since when; infinity: it is none."""
    heard: float = -inf
    """When it was last suspected or heard of."""
    attempt: int = 0
    rtt: float | None = None

    @property
    def is_suspect(self) -> bool:
        return self.suspect < inf

    def is_used(self, now: float) -> bool:
        return self.uses > 0 or now - self.used < IN_USE

    def is_late(self, now: float) -> bool:
        """Whether its silence has lasted too long."""
        unanswered = now - self.asked
        if unanswered < FAIR:
            return False
        if self.is_used(now):
            return now - max(self.sign, self.since) >= SILENCE
        return unanswered >= (DOUBTED_SILENCE if self.is_doubted else IDLE_SILENCE)


class Health:
    """What is known of the life of each peer that this node has to do with."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._watched: dict[PeerId, _Watched] = {}
        self._close: dict[PeerId, _Watched] = {}
        """Those of them that each look goes through: used, pinged, or suspect."""
        self._connected: dict[PeerId, None] = {}
        self._round: list[PeerId] = []
        self._next = 0.0
        self._last: float | None = None
        self._stalled = 0.0
        self._sent = Allowance(HINTS_SENT)
        self._taken: dict[PeerId, Allowance] = {}

    # What happens

    def met(self, peer: PeerId, now: float, *, is_member: bool = True) -> Actions:
        """It was admitted."""
        one = self._of(peer)
        one.is_member, one.is_connected = is_member, True
        self._connected[peer] = None
        return self.alive(peer, now)

    def parted(self, peer: PeerId, reason: str, now: float) -> Actions:
        """Its last connection closed. A client is not looked for: nobody asks it anything."""
        self._connected.pop(peer, None)
        self._taken.pop(peer, None)
        one = self._watched.get(peer)
        if one is None:
            return ()
        one.is_connected = False
        if not one.is_member:
            self.forget(peer)
            return ()
        return self._suspect(one, reason, self._run(now))

    def begun(self, peer: PeerId, now: float) -> None:
        """This node asks it something; `ended` is to follow."""
        time, one = self._run(now), self._of(peer)
        if not one.is_used(time):
            one.since = time
            one.due = min(one.due, time)
        one.uses += 1
        one.used = time
        self._close[peer] = one

    def ended(self, peer: PeerId, now: float) -> None:
        """What had begun is over, one way or the other."""
        if (one := self._watched.get(peer)) is not None:
            one.uses = max(0, one.uses - 1)
            one.used = self._run(now)

    def alive(self, peer: PeerId, now: float) -> Actions:
        """It gave a sign of life."""
        if (one := self._watched.get(peer)) is None:
            return ()
        one.sign = self._run(now)
        one.asked, one.is_doubted = inf, False
        if not one.is_suspect:
            return ()
        one.suspect, one.attempt = inf, 0
        one.due = one.since = one.sign
        return (Revive(peer),) if one.is_member else ()

    def ponged(self, peer: PeerId, took: float, now: float) -> Actions:
        """It answered a ping after `took` seconds."""
        actions = self.alive(peer, now)
        if (one := self._watched.get(peer)) is not None:
            one.rtt = took if one.rtt is None else one.rtt + _SMOOTHING * (took - one.rtt)
        return actions

    def failed(self, peer: PeerId, reason: str, now: float) -> Actions:
        """It could not be reached, or did not answer in time."""
        time = self._run(now)
        one = self._watched.get(peer)
        return self._suspect(one, reason, time) if one is not None else ()

    def probing(self, peer: PeerId, now: float) -> None:
        """A ping is under way that nobody here has asked for."""
        one = self._of(peer)
        one.asked = min(one.asked, self._run(now))
        self._close[peer] = one

    def doubted(self, peer: PeerId, now: float) -> Actions:
        """Something speaks against it: a stream that failed, say."""
        time, one = self._run(now), self._watched.get(peer)
        if one is None or one.is_suspect:
            return ()
        if not one.is_connected:
            one.sign = -inf  # so it is asked before it is used again
            return ()
        one.is_doubted = True
        return self._probe(one, time) if one.asked == inf and time - one.sign > TICK else ()

    def hinted(self, peer: PeerId, source: PeerId, now: float) -> Actions:
        """A neighbour says that it is gone."""
        allowance = self._taken.setdefault(source, Allowance(HINTS_TAKEN))
        return self.doubted(peer, now) if allowance.take(self._run(now)) else ()

    def heard_of(self, peer: PeerId, now: float) -> None:
        """It announced itself: if it is suspect, that is worth a try."""
        one = self._watched.get(peer)
        if one is not None and one.is_suspect:
            one.heard = self._run(now)
            one.attempt = 0
            one.due = min(one.due, one.heard + delay(0, self._rng))

    def forget(self, peer: PeerId) -> None:
        """Its announcement lapsed, or it is a member no more. While it is connected, it stays."""
        if peer not in self._connected:
            self._watched.pop(peer, None)
            self._close.pop(peer, None)

    # What is asked

    def rtt(self, peer: PeerId) -> float | None:
        """Seconds that a ping takes there and back, smoothed."""
        one = self._watched.get(peer)
        return one.rtt if one is not None else None

    def is_fresh(self, peer: PeerId, now: float) -> bool:
        """Whether it can be used without being asked first."""
        one = self._watched.get(peer)
        return one is not None and not one.is_suspect and self._run(now) - one.sign < FRESH

    def is_connected(self, peer: PeerId) -> bool:
        """Whether it is admitted, answering or not."""
        return peer in self._connected

    def is_suspect(self, peer: PeerId) -> bool:
        one = self._watched.get(peer)
        return one is not None and one.is_suspect

    # What is to be done

    def tick(self, now: float) -> Actions:
        """To be called every TICK. Costs as much as there are peers watched closely."""
        time = self._run(now)
        self._last = now
        actions: list[Action] = []
        for one in tuple(self._close.values()):
            actions += self._look(one, time)
        return (*actions, *self._others(time))

    def _look(self, one: _Watched, time: float) -> Actions:
        if one.is_suspect:
            return self._look_at_suspect(one, time)
        if one.is_late(time):
            return self._suspect(one, "it does not answer", time)
        if not one.is_used(time):
            if one.asked == inf:
                self._close.pop(one.peer, None)
                self._let_go(one)
            return ()
        return self._probe(one, time) if time >= one.due else ()

    def _look_at_suspect(self, one: _Watched, time: float) -> Actions:
        if time - one.heard > FORGET:
            self.forget(one.peer)
            return ()
        if one.is_connected and time - max(one.sign, one.suspect - SILENCE) > HOPELESS:
            one.is_connected = False
            return (Drop(one.peer),)
        if time < one.due:
            return ()
        wait = delay(one.attempt, self._rng, most=LONGEST_WAIT)
        one.attempt += 1
        one.due = time + wait
        return (Probe(one.peer),)

    def _others(self, time: float) -> Actions:
        if time < self._next or not self._connected:
            return ()
        self._next = time + min(OTHERS_EVERY, ROUND / len(self._connected))
        for _ in range(len(self._connected)):
            one = self._watched[self._draw()]
            if one.is_connected and not one.is_suspect and not one.is_used(time):
                return self._probe(one, time) if one.asked == inf else ()
        return ()

    def _draw(self) -> PeerId:
        """The next of the connected peers: all of them in each round, in an order by chance."""
        while True:
            while self._round:
                if (peer := self._round.pop()) in self._connected:
                    return peer
            self._round = list(self._connected)
            self._rng.shuffle(self._round)

    def _probe(self, one: _Watched, time: float) -> Actions:
        one.asked = min(one.asked, time)
        one.due = time + PING_EVERY
        self._close[one.peer] = one
        return (Probe(one.peer),)

    def _suspect(self, one: _Watched, reason: str, time: float) -> Actions:
        if one.is_suspect:
            return ()
        one.suspect = one.heard = time
        one.asked, one.attempt = inf, 1
        one.due = time + delay(0, self._rng)
        self._close[one.peer] = one
        if not one.is_member:
            return ()  # it is no concern of anybody that a client is gone
        return (Suspect(one.peer, reason, self._sent.take(time)),)

    def _let_go(self, one: _Watched) -> None:
        """Keeps nothing of a peer that is neither connected nor suspect nor in use, and gave no
        sign of life for long.
        """
        if not one.is_connected and one.peer not in self._connected:
            self._watched.pop(one.peer, None)

    def _of(self, peer: PeerId) -> _Watched:
        one = self._watched.get(peer)
        if one is None:
            one = self._watched[peer] = _Watched(peer)
        return one

    def _run(self, now: float) -> float:
        """The time on the clock that stands still while this node does."""
        if self._last is None:
            self._last = now
        elif now - self._last > STALL:
            self._stalled += now - self._last - TICK
            self._last = now
        return now - self._stalled
