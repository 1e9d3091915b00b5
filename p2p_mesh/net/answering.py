"""Answers to the questions of other nodes. How they travel is told in inference.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, suppress
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
from p2p_mesh.journal import Journal
from p2p_mesh.net import protocols as wires
from p2p_mesh.net.groups import bare
from p2p_mesh.net.inference import MAX_REQUESTS, PROTOCOL, fitting
from p2p_mesh.net.protocols import Protocols, Stream

_QUEUE = 1024
_MOST_TOGETHER = 256
_MOST_LOADS = 256  # that an `end` has room for, core/wire.py


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
        protocols.serve(PROTOCOL, self._serve)

    async def _serve(self, stream: Stream, member: Member) -> None:
        session = _Session(stream, member)
        with bare():
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
                session.scope = trio.CancelScope()
                nursery.start_soon(self._run, session, message)
            elif session.scope is not None:
                session.scope.cancel()

    async def _run(self, session: _Session, question: Ask | Look) -> None:
        error: ErrorMessage | None = None
        assert session.scope is not None
        with session.scope:
            error = await self._attempt(session, question)
        last = error or End(load=self._handlers.load()[:_MOST_LOADS])
        # Free before the asker can know it, since the next request comes right after `end`.
        session.scope = None
        with suppress(Unavailable):
            await session.stream.tell(last)

    async def _attempt(self, session: _Session, question: Ask | Look) -> ErrorMessage | None:
        peer = session.member.peer
        if self._busy[peer] >= MAX_REQUESTS:
            return ErrorMessage.of(
                Overloaded(f"{MAX_REQUESTS} requests of yours are under way", retry_after=1.0)
            )
        self._busy[peer] += 1
        try:
            if isinstance(question, Ask):
                await self._send(session, question.request)
            else:
                await self._reply(session, question.query)
        except MeshError as error:
            return ErrorMessage.of(error)
        except Exception as error:  # noqa: BLE001 - our own mistake must not end the host
            self._journal.error("handler_failed", f"an answer failed: {error!r}", peer=peer)
            return ErrorMessage.of(MeshError("an internal error"))
        finally:
            self._busy[peer] -= 1
            if not self._busy[peer]:
                del self._busy[peer]
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
