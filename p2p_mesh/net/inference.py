"""Questions to other nodes: the asking end. The other one is answering.py.

Theory of operation:

1. A stream carries one request at a time, and goes back to a pool: to open one costs several
   round trips. Its reader never stops, so that the window never fills and its end is seen.
2. `ask` opens an answer, `delta` messages carry it, `end` or `error` closes it. Deltas that
   queue up while a message is being sent travel together in the next. `look` opens one that is
   a single `found`.
3. An asker that leaves early sends `cancel`, and the stream is free again when `end` came; if
   it does not come in time, the stream is reset. A `cancel` that crosses `end` is ignored.
4. The server reads on while it answers: `cancel`, or the end of the stream, cancels the answer.
5. A queued request is answered with silence, so the deadline is long; a peer that is gone is
   seen by its connection, and one that hangs by whoever pings it: `fail` then ends all that is
   under way with it, questions that are still being sent among it.
6. Each `end` and each `error` says how busy the node is.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from p2p_mesh.core.names import PeerId
from p2p_mesh.core.offers import Take
from p2p_mesh.core.records import Delta, InferenceRequest, ModelLoad, Query, Reply
from p2p_mesh.core.wire import (
    INFERENCE_LIMIT,
    Ask,
    Cancel,
    End,
    ErrorMessage,
    Found,
    Grew,
    Look,
    decode,
    encode,
)
from p2p_mesh.errors import MeshError, Overloaded, RemoteError, RequestError, Unavailable
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.protocols import Protocols, Stream

MAX_REQUESTS = 64
"""Requests, and so streams, to or from one peer at a time."""

MAX_RESUMED = 3 * MAX_REQUESTS
"""The same with answers that go on after another node failed: none is lost for want of room."""

SILENCE = 300.0
"""Seconds without any message before an answer is given up."""

CANCEL_DEADLINE = 5.0
CREDIT = 16 << 20
"""Bytes of an answer that wait for an asker who does not take them."""


PROTOCOL = wires.Protocol("inference", INFERENCE_LIMIT)

_Answered = Grew | Found | End | ErrorMessage


class Questions:
    """The asking end: a pool of streams for each peer. `alive` is told of each frame that comes,
    `heard_load` of how busy a peer says it is.
    """

    def __init__(
        self,
        protocols: Protocols,
        nursery: trio.Nursery,
        *,
        alive: Callable[[PeerId], None],
        heard_load: Callable[[PeerId, tuple[ModelLoad, ...]], None],
    ) -> None:
        self.alive = alive
        self.heard_load = heard_load
        self._protocols = protocols
        self._nursery = nursery
        self._idle: dict[PeerId, list[_Line]] = {}
        self._open: Counter[PeerId] = Counter()
        self._lines: dict[PeerId, set[_Line]] = {}
        self._sending: dict[PeerId, set[_Sending]] = {}

    def fail(self, peer: PeerId, error: MeshError) -> None:
        """Ends at once, with this error, all that is under way with a peer. Its streams are of no
        use any more: the next question opens one.
        """
        self._idle.pop(peer, None)
        for sending in self._sending.get(peer, ()):
            sending.fail(error)
        for line in self._lines.get(peer, ()):
            line.fail(error)

    def ask(
        self, peer: PeerId, request: InferenceRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]:
        """The answer of an admitted peer; leaving the context cancels it. Raises what the
        peer answered, and Unavailable.
        """
        return self._asking(peer, Ask(request=request), Grew)

    async def query(self, peer: PeerId, query: Query) -> Reply:
        """The reply of an admitted peer. Raises what the peer answered, and Unavailable."""
        async with self._asking(peer, Look(query=query), Found) as replies:
            reply: Reply | None = await anext(replies, None)
            if reply is None:
                raise RemoteError(f"{peer} ended without a reply")
            # With its `end`, the stream goes back to the pool.
            with trio.move_on_after(CANCEL_DEADLINE):
                if await anext(replies, None) is not None:
                    raise RemoteError(f"{peer} gave more than one reply")
            return reply

    @asynccontextmanager
    async def _asking(
        self, peer: PeerId, question: Ask | Look, kind: type[Grew | Found]
    ) -> AsyncIterator[AsyncIterator[Any]]:
        body = fitting(question, "the request")
        with self._failing(peer):
            line = await self._take(peer, most_of(question))
            answer = await line.ask(body, kind)
        try:
            yield answer
        finally:
            line.leave(answer)

    @contextmanager
    def _failing(self, peer: PeerId) -> Iterator[None]:
        """Cuts its body short when `fail` says so."""
        sending, beside = _Sending(), self._sending.setdefault(peer, set())
        beside.add(sending)
        try:
            with sending.scope:
                yield
        finally:
            beside.discard(sending)
            if not beside:
                self._sending.pop(peer, None)
        if sending.error is not None and sending.scope.cancelled_caught:
            raise sending.error

    async def _take(self, peer: PeerId, most: int) -> _Line:
        idle = self._idle.get(peer, [])
        if self._open[peer] - len(idle) >= most:
            raise Overloaded(f"{most} requests to {peer} are under way", retry_after=1.0)
        if idle:
            return idle.pop()
        self._open[peer] += 1
        try:
            stream = await self._protocols.connect(peer, PROTOCOL)
        except BaseException:
            self._close(peer)
            raise
        line = _Line(stream, self)
        self._lines.setdefault(peer, set()).add(line)
        self.start(line.run)
        return line

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        # An asker may leave when the network has closed; then there is nothing to do.
        if not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(task)

    def free(self, line: _Line) -> None:
        """The line can carry the next request."""
        self._idle.setdefault(line.peer, []).append(line)

    def drop(self, line: _Line) -> None:
        """The line is no more."""
        idle = self._idle.get(line.peer, [])
        if line in idle:
            idle.remove(line)
        if not idle:
            self._idle.pop(line.peer, None)
        self._lines[line.peer].discard(line)
        self._close(line.peer)

    def _close(self, peer: PeerId) -> None:
        self._open[peer] -= 1
        if not self._open[peer]:
            del self._open[peer]
            self._lines.pop(peer, None)


@dataclass(slots=True, eq=False)
class _Sending:
    """A question on its way: no stream has it yet, or not whole."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    error: MeshError | None = None

    def fail(self, error: MeshError) -> None:
        self.error = error
        self.scope.cancel()


class _Line:
    """One stream to a peer. Its reader runs in the network's nursery and outlives an asker
    that leaves early, so nobody waits for the peer's `end`.
    """

    def __init__(self, stream: Stream, pool: Questions) -> None:
        self.peer = stream.peer
        self._stream = stream
        self._pool = pool
        self._answer: _Answer | None = None
        self._reading = trio.CancelScope()

    async def ask(self, question: bytes, kind: type[Grew | Found]) -> _Answer:
        answer = self._answer = _Answer(kind)
        self._reading.deadline = trio.current_time() + SILENCE
        try:
            await self._stream.send(question)
        except BaseException:
            # Half a question may be on its way: this stream is good for nothing more.
            self._reading.cancel()
            raise
        return answer

    def _expect(self) -> None:
        """The peer has SILENCE from now, or a second less: not every frame moves a deadline."""
        now = trio.current_time()
        if self._reading.deadline < now + SILENCE - 1:
            self._reading.deadline = now + SILENCE

    def fail(self, error: MeshError) -> None:
        if self._answer is not None:
            self._answer.finish(error)
        self._reading.cancel()

    def leave(self, answer: _Answer) -> None:
        """The asker is done. Returns at once; what is left to do, the reader does."""
        if self._answer is not answer or answer.is_left:
            return
        answer.is_left = True
        self._reading.deadline = trio.current_time() + CANCEL_DEADLINE
        self._pool.start(partial(self._cancel, answer))

    async def _cancel(self, answer: _Answer) -> None:
        if self._answer is not answer:
            return  # its end came first, and the line may carry another answer already
        with suppress(Unavailable), trio.move_on_after(CANCEL_DEADLINE):
            await self._stream.tell(Cancel())

    async def run(self) -> None:
        """Reads as long as the stream lives."""
        error: MeshError = Unavailable(f"{self.peer} went silent")
        try:
            with self._reading:
                await self._stream.listen(self._hear)
        except MeshError as failure:
            error = failure
        finally:
            self._pool.drop(self)
            if self._answer is not None:
                self._answer.finish(error)
            await self._stream.reset()

    def _hear(self, frame: bytes) -> None:
        self._pool.alive(self.peer)
        message: _Answered = decode(frame, _Answered)
        answer = self._answer
        if answer is None:
            raise RemoteError(f"{self.peer} answers what nobody asked")
        if isinstance(message, End | ErrorMessage):
            is_given_up = self._reading.cancel_called  # also where the deadline has just passed
            self._answer = None
            self._reading.deadline = math.inf
            if message.load:
                self._pool.heard_load(self.peer, message.load)
            answer.finish(message.error() if isinstance(message, ErrorMessage) else None)
            if not is_given_up:
                self._pool.free(self)
        elif not isinstance(message, answer.kind):
            raise RemoteError(f"{self.peer} answers another question")
        elif not answer.is_left:
            self._expect()
            answer.grow(message, len(frame))
            if answer.held > CREDIT:
                # The fault of our client: the peer answers well, and another would fare no better.
                answer.finish(RequestError("the answer grew faster than it was taken"))
                self.leave(answer)


class _Answer:
    """What came and was not taken yet: deltas, or a reply."""

    def __init__(self, kind: type[Grew | Found]) -> None:
        self.kind = kind
        self.held = 0
        self.is_left = False
        self._chunks: deque[tuple[Sequence[Any], int]] = deque()
        self._current: Iterator[Any] = iter(())
        self._over = False
        self._error: MeshError | None = None
        self._waiting = trio.lowlevel.ParkingLot()
        self._take: Take[Delta] | None = None

    def offer(self, take: Take[Delta]) -> None:
        """See core/offers.py."""
        self._take = take

    def grow(self, message: Grew | Found, size: int) -> None:
        items = message.deltas if isinstance(message, Grew) else (message.reply,)
        if self._is_taken(items):
            return
        self.held += size
        self._chunks.append((items, size))
        self._waiting.unpark()

    def _is_taken(self, items: Sequence[Any]) -> bool:
        if self._take is None or not self._waiting or self._chunks or len(items) != 1:
            return False
        return self._take(items[0])

    def finish(self, error: MeshError | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
            self._waiting.unpark()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        while (item := next(self._current, None)) is None:
            if self._chunks:
                items, size = self._chunks.popleft()
                self.held -= size
                self._current = iter(items)
            elif self._error is not None:
                raise self._error
            elif self._over:
                raise StopAsyncIteration
            else:
                await self._waiting.park()
        return item


def most_of(question: Ask | Look) -> int:
    """How many requests between two nodes may be under way with this one."""
    is_resumed = isinstance(question, Ask) and bool(question.request.resume)
    return MAX_RESUMED if is_resumed else MAX_REQUESTS


def fitting(message: object, what: str) -> bytes:
    """The message as it travels. Raises RequestError where it is too large for that."""
    body = encode(message)
    if len(body) > INFERENCE_LIMIT:
        raise RequestError(
            f"{what} has {len(body)} bytes, and {INFERENCE_LIMIT} can travel; ask for less at once"
        )
    return body
