"""Pings: who still answers, and who is to hear of it when somebody does not.

core/health.py decides; this module asks and tells. A peer is pinged on a stream that stays open.
A peer that no longer reads blocks whoever writes to it, so every write has its deadline and a task
of its own, and nothing here waits for it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Protocol

import trio

from p2p_mesh.core.allowance import Allowance
from p2p_mesh.core.health import (
    PINGS_TAKEN,
    TICK,
    Actions,
    Down,
    Drop,
    Health,
    Ping,
    Pong,
    Probe,
    Revive,
    Suspect,
)
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.records import ModelLoad
from p2p_mesh.errors import MeshError, Overloaded, Refused, RemoteError, Unavailable
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.line import Line, deadline
from p2p_mesh.net.offences import Offences
from p2p_mesh.net.protocols import Protocols, Stream

HEALTH_LIMIT = 512 << 10
"""A pong that says how busy 256 models are."""

CHECK = 1.0
"""Seconds in which a peer that is to be used must answer, where it said nothing for long."""

REOPEN = 0.5
"""Seconds in which a stream that failed must be there again."""

LATE = 0.1
"""Seconds by which a deadline is noticed too late, where it was this node that stood still: what
came meanwhile is not read yet.
"""

MAX_LINES = 64
"""Peers that a stream is kept open to."""

MAX_STREAMS = 2
"""Streams that one peer may keep open to us."""

MAX_SEEKING = 16
"""Peers that are dialed at a time. They are suspects, and most of them may be dead."""

PROTOCOL = wires.Protocol("health", HEALTH_LIMIT)


class Handlers(Protocol):
    """What the node supplies, as in handlers.py."""

    def load(self) -> tuple[ModelLoad, ...]: ...

    def heard_load(self, peer: PeerId, loads: tuple[ModelLoad, ...]) -> None: ...

    def suspected(self, peer: PeerId, reason: str) -> None: ...

    def revived(self, peer: PeerId) -> None: ...


class Pulse:
    """Feels the pulse of the peers. `connect` and `drop` are the network's; `fail` ends what is
    under way with a peer.
    """

    def __init__(
        self,
        protocols: Protocols,
        health: Health,
        nursery: trio.Nursery,
        *,
        handlers: Handlers,
        offences: Offences,
        connect: Callable[[PeerId], Awaitable[object]],
        drop: Callable[[PeerId], Awaitable[None]],
        fail: Callable[[PeerId, MeshError], None],
    ) -> None:
        self._protocols = protocols
        self._health = health
        self._nursery = nursery
        self._handlers = handlers
        self._offences = offences
        self._connect = connect
        self._drop = drop
        self._fail = fail
        self._lines: OrderedDict[PeerId, Line] = OrderedDict()
        self._pinging: set[PeerId] = set()
        self._sought: set[PeerId] = set()
        self._seeking = trio.Semaphore(MAX_SEEKING)
        self._checks: dict[PeerId, set[trio.Event]] = {}
        self._streams: Counter[PeerId] = Counter()
        self._is_over = False
        protocols.serve(PROTOCOL, self._serve)

    async def run(self) -> None:
        try:
            while True:
                self._perform(self._health.tick(trio.current_time()))
                await trio.sleep(TICK)
        finally:
            self._is_over = True

    # What the network says and asks

    def joined(self, member: Member) -> None:
        is_member = member.role == "member"
        now = trio.current_time()
        self._perform(self._health.met(member.peer, now, is_member=is_member))

    def left(self, peer: PeerId, reason: str) -> None:
        if (line := self._lines.pop(peer, None)) is not None:
            line.cut()
        self._perform(self._health.parted(peer, reason, trio.current_time()))

    def alive(self, peer: PeerId) -> None:
        """A frame of an answer came."""
        self._perform(self._health.alive(peer, trio.current_time()))

    def doubt(self, peer: PeerId) -> None:
        """Something speaks against it; it is asked at once."""
        self._perform(self._health.doubted(peer, trio.current_time()))

    def know(self, peer: PeerId, is_announced: bool) -> None:
        """It announced itself, or its announcement lapsed."""
        if is_announced:
            self._health.heard_of(peer, trio.current_time())
        else:
            self._health.forget(peer)

    def is_fresh(self, peer: PeerId) -> bool:
        return self._health.is_fresh(peer, trio.current_time())

    def rtt(self, peer: PeerId) -> float | None:
        return self._health.rtt(peer)

    @contextmanager
    def using(self, peer: PeerId) -> Iterator[None]:
        """Watches a connected peer closely, as long as this lasts and a minute more."""
        self._health.begun(peer, trio.current_time())
        try:
            yield
        finally:
            self._health.ended(peer, trio.current_time())

    async def check(self, peer: PeerId) -> None:
        """Asks a connected peer for a sign of life. Raises Unavailable."""
        answered, waiting = trio.Event(), self._checks.setdefault(peer, set())
        waiting.add(answered)
        self._health.probing(peer, trio.current_time())
        try:
            await _within(CHECK, partial(self._ask, peer, answered))
        finally:
            waiting.discard(answered)
            if not waiting:
                self._checks.pop(peer, None)
        if not answered.is_set():
            self._failed(peer, "it does not answer")
        if not answered.is_set() or self._health.is_suspect(peer):
            raise Unavailable(f"{peer} does not answer")

    async def _ask(self, peer: PeerId, answered: trio.Event) -> None:
        self._start(self._ping, peer)
        await answered.wait()

    # Actions

    def _start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        if not self._is_over and not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(task, *args)

    def _perform(self, actions: Actions) -> None:
        if self._is_over:
            return
        for action in actions:
            match action:
                case Probe(peer):
                    self._start(self._probe, peer)
                case Drop(peer):
                    self._start(self._drop, peer)
                case Revive(peer):
                    self._handlers.revived(peer)
                case Suspect():
                    self._suspected(action)

    def _suspected(self, action: Suspect) -> None:
        peer = action.peer
        self._handlers.suspected(peer, action.reason)
        self._fail(peer, Unavailable(f"{peer} is gone: {action.reason}"))
        self._wake(peer)
        if action.is_told:
            for neighbour, line in self._lines.items():
                if neighbour != peer:
                    self._start(line.hint, peer)

    def _failed(self, peer: PeerId, reason: str) -> None:
        self._perform(self._health.failed(peer, reason, trio.current_time()))

    def _wake(self, peer: PeerId) -> None:
        for waiting in self._checks.get(peer, ()):
            waiting.set()

    # The asking end

    async def _probe(self, peer: PeerId) -> None:
        """Pings a peer. One that is not connected is dialed first, when its turn comes; one that
        comes by itself meanwhile is pinged without waiting for that.
        """
        if not self._health.is_connected(peer) and not await self._seek(peer):
            return
        await self._ping(peer)

    async def _seek(self, peer: PeerId) -> bool:
        if peer in self._sought:
            return False
        self._sought.add(peer)
        try:
            async with self._seeking:
                await self._connect(peer)
        except Refused:
            self._health.forget(peer)  # or it would be dialed, and refused, for ever
        except MeshError:
            self._failed(peer, "it cannot be reached")
        else:
            return True
        finally:
            self._sought.discard(peer)
        return False

    async def _ping(self, peer: PeerId) -> None:
        if peer in self._pinging:
            return  # what blocks that one would block this one
        self._pinging.add(peer)
        try:
            line = self._lines.get(peer) or await self._open(peer)
            self._lines.move_to_end(peer)
            with suppress(Unavailable):  # `_listen` sees that the stream has failed
                await line.ping()
        except MeshError:
            self._failed(peer, "it cannot be reached")
        finally:
            self._pinging.discard(peer)

    async def _open(self, peer: PeerId) -> Line:
        with deadline(peer):
            line = Line(await self._protocols.connect(peer, PROTOCOL))
        self._lines[peer] = line
        self._start(self._listen, line)
        if len(self._lines) > MAX_LINES:
            _, oldest = self._lines.popitem(last=False)
            oldest.cut()
        return line

    async def _listen(self, line: Line) -> None:
        """Hears pongs as long as the stream lives."""
        peer, reason = line.peer, "the stream of its pongs broke"
        try:
            with line.reading:
                while True:
                    pong, took = await line.hear()
                    self._heard(peer, pong, took)
        except RemoteError as error:
            self._offences.note(peer, f"health: {error}")
            reason = str(error)
        except Unavailable:
            pass  # as the reason says
        finally:
            await line.reset()
        if self._lines.get(peer) is line:
            del self._lines[peer]
            await self._reopen(line, reason)

    async def _reopen(self, line: Line, reason: str) -> None:
        """A stream may fail alone: where its peer lives, another one opens at once."""
        if not line.was_good() or not await _within(REOPEN, partial(self._ping, line.peer)):
            self._failed(line.peer, reason)

    def _heard(self, peer: PeerId, pong: Pong, took: float | None) -> None:
        now = trio.current_time()
        if took is None:
            self._perform(self._health.alive(peer, now))
        else:
            self._perform(self._health.ponged(peer, took, now))
        self._handlers.heard_load(peer, pong.load)
        self._wake(peer)

    # The answering end

    async def _serve(self, stream: Stream, member: Member) -> None:
        if self._streams[member.peer] >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} health streams of yours are open")
        self._streams[member.peer] += 1
        try:
            with suppress(Unavailable):  # the asker closed the stream, or is gone
                await self._answer(stream)
        finally:
            self._streams[member.peer] -= 1
            if not self._streams[member.peer]:
                del self._streams[member.peer]

    async def _answer(self, stream: Stream) -> None:
        allowance = Allowance(PINGS_TAKEN)
        while True:
            message: Ping | Down = await stream.hear(Ping | Down)
            now = trio.current_time()
            if not allowance.take(now):
                raise RemoteError(f"more than {PINGS_TAKEN} pings and hints in a few seconds")
            if isinstance(message, Ping):
                with deadline(stream.peer):
                    await stream.tell(Pong(number=message.number, load=self._handlers.load()))
            else:
                self._perform(self._health.hinted(message.peer, stream.peer, now))


async def _within(seconds: float, do: Callable[[], Awaitable[None]]) -> bool:
    """Whether it was done within so many seconds. Where far more have passed by then, this node
    stood still, and it is done once more.
    """
    for _ in range(2):
        end = trio.current_time() + seconds
        with trio.move_on_at(end):
            await do()
            return True
        if trio.current_time() < end + LATE:
            break
    return False
