"""Answers to the questions of other nodes. How they travel is told in inference.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
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
    encode,
)
from p2p_mesh.errors import MeshError, Overloaded, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.inference import MAX_RESUMED, PROTOCOL, fitting, most_of
from p2p_mesh.net.protocols import Protocols, Stream

_QUEUE = 1024
_MOST_TOGETHER = 256
_MOST_LOADS = 256  # that an `end` has room for, core/wire.py

MAX_STREAMS = MAX_RESUMED + 8
"""Streams of one member, each of which may hold most of a message: those of its requests, and some
that end while others are opened.
"""


class Handlers(Protocol):
    """Who answers what members ask; leaving an answer's context cancels it."""

    def answer(
        self, request: InferenceRequest, asker: Member
    ) -> AbstractAsyncContextManager[AsyncIterator[Delta]]: ...

    async def look(self, query: Query, asker: Member) -> Reply: ...

    def load(self) -> tuple[ModelLoad, ...]: ...


class Answers:
    """The answering end."""

    def __init__(self, protocols: Protocols, handlers: Handlers, journal: Journal) -> None:
        self._handlers = handlers
        self._journal = journal
        self._busy: Counter[PeerId] = Counter()
        self._streams: Counter[PeerId] = Counter()
        protocols.serve(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream, member: Member) -> None:
        if self._streams[member.peer] >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} streams of yours are open", retry_after=1.0)
        session = _Session(stream, member)
        with bare(), _counted(self._streams, member.peer):
            async with trio.open_nursery() as nursery:
                with suppress(Unavailable):  # the asker closed the stream, or is gone
                    await self._read(session, nursery)
                nursery.cancel_scope.cancel()

    async def _read(self, session: _Session, nursery: trio.Nursery) -> None:
        while True:
            message: Ask | Look | Cancel = await session.stream.hear(Ask | Look | Cancel)
            if not isinstance(message, Cancel):
                if session.scope is not None:
                    raise RemoteError("a request before the last one ended")
                # Else one that takes no answers could have any number of them under way.
                if session.is_told is not None and not session.is_told.is_set():
                    await session.is_told.wait()
                session.scope, session.is_told = trio.CancelScope(), trio.Event()
                nursery.start_soon(self._run, session, message)
            elif session.scope is not None:
                session.scope.cancel()

    async def _run(self, session: _Session, question: Ask | Look) -> None:
        error: MeshError | None = None
        assert session.scope is not None
        assert session.is_told is not None
        is_told = session.is_told
        with session.scope:
            error = await self._attempt(session, question)
        load = self._handlers.load()[:_MOST_LOADS]
        last = End(load=load) if error is None else ErrorMessage.of(error, load)
        # Free before the asker can know it, since the next request comes right after `end`.
        session.scope = None
        try:
            await session.stream.tell(last)
        except Unavailable:
            # Perhaps a part of a message was sent: the asker would wait for the rest of it.
            await session.stream.reset()
        finally:
            is_told.set()

    async def _attempt(self, session: _Session, question: Ask | Look) -> MeshError | None:
        peer, most = session.member.peer, most_of(question)
        if self._busy[peer] >= most:
            return Overloaded(f"{most} requests of yours are under way", retry_after=1.0)
        try:
            with _counted(self._busy, peer):
                if isinstance(question, Ask):
                    await self._send(session, question.request)
                else:
                    await self._reply(session, question.query)
        except MeshError as error:
            return error
        except Exception as error:  # noqa: BLE001 - our own mistake must not end the host
            self._journal.error("handler_failed", f"an answer failed: {error!r}", peer=peer)
            return MeshError("an internal error")
        return None

    async def _reply(self, session: _Session, query: Query) -> None:
        reply = await self._handlers.look(query, session.member)
        await session.stream.send(fitting(Found(reply=reply), "the reply"))

    async def _send(self, session: _Session, request: InferenceRequest) -> None:
        answering = self._handlers.answer(request, session.member)
        with bare():
            async with answering as deltas, trio.open_nursery() as nursery:
                ready = wires.Gathered[Delta](_QUEUE, partial(_send_now, session.stream))
                nursery.start_soon(ready.collect, deltas)
                while batch := await ready.take(_MOST_TOGETHER):
                    for body in _bodies(batch):
                        await session.stream.send(body)


@dataclass(slots=True)
class _Session:
    """A stream that a member opened, and the answer that is under way on it."""

    stream: Stream
    member: Member
    scope: trio.CancelScope | None = None
    is_told: trio.Event | None = None
    """Of the last answer: set when its end is on its way."""


@contextmanager
def _counted(counter: Counter[PeerId], peer: PeerId) -> Iterator[None]:
    counter[peer] += 1
    try:
        yield
    finally:
        counter[peer] -= 1
        if not counter[peer]:
            del counter[peer]


def _send_now(stream: Stream, delta: Delta) -> bool:
    return stream.send_nowait(fitting(Grew(deltas=(delta,)), "a part of the answer"))


def _bodies(deltas: tuple[Delta, ...]) -> Iterator[bytes]:
    """The deltas in as few messages as can travel. Raises RequestError where one cannot."""
    if len(deltas) == 1:
        yield fitting(Grew(deltas=deltas), "a part of the answer")
        return
    body = encode(Grew(deltas=deltas))
    if len(body) <= INFERENCE_LIMIT:
        yield body
        return
    middle = len(deltas) // 2
    yield from _bodies(deltas[:middle])
    yield from _bodies(deltas[middle:])
