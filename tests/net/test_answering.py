"""The answering end alone, on streams that are only remembered; test_inference.py has both ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import ModelId, PeerId
from p2p_mesh.core.records import (
    Delta,
    DetokenizeQuery,
    InferenceRequest,
    ModelLoad,
    Query,
    Reply,
    Resume,
    Text,
)
from p2p_mesh.core.wire import Ask, Cancel, End, ErrorMessage, Found, Grew, Look, decode, encode
from p2p_mesh.errors import Overloaded, RemoteError, RequestError, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.net import answering
from p2p_mesh.net.answering import Answers
from p2p_mesh.net.inference import MAX_REQUESTS, MAX_RESUMED
from p2p_mesh.testing.members import request

Clock = trio.testing.MockClock
MEMBER = Member(PeerId("asker"), "member", None)
LOAD = (ModelLoad(model=ModelId("m"), slots=4),)
QUERY = Look(query=DetokenizeQuery(model=ModelId("m"), tokens=(104, 105)))


class Handlers:
    """Answers by `generate`, and says how many answers are open as its load."""

    def __init__(self, generate: Any) -> None:
        self.generate = generate
        self.active = 0

    @asynccontextmanager
    async def answer(self, asked: InferenceRequest, asker: Member) -> AsyncIterator[Any]:
        self.active += 1
        try:
            yield self.generate()
        finally:
            self.active -= 1

    async def look(self, query: Query, asker: Member) -> Reply:
        return Text(text="hi")

    def load(self) -> tuple[ModelLoad, ...]:
        return (ModelLoad(model=ModelId("m"), slots=4, active=self.active),)


class Line:
    """A stream: what is put in is heard, what is sent stays."""

    peer = MEMBER.peer

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.bodies: list[bytes] = []
        self.put, self._take = trio.open_memory_channel[Any](1000)
        self.is_shut = self.is_broken = self.is_reset = False

    async def hear(self, kind: Any) -> Any:
        try:
            return await self._take.receive()
        except trio.EndOfChannel as error:
            raise Unavailable("closed") from error

    async def send(self, body: bytes) -> None:
        self.bodies.append(body)
        self.sent.append(decode(body, Grew | Found | End | ErrorMessage))

    async def reset(self) -> None:
        self.is_reset = True

    async def tell(self, message: object) -> None:
        if self.is_shut:
            await trio.sleep_forever()
        if self.is_broken:
            raise Unavailable("broken")
        await self.send(encode(message))


async def two() -> AsyncIterator[Delta]:
    yield Delta(text="a")
    yield Delta(text="b", finish="stop")


async def rest() -> AsyncIterator[Delta]:
    yield Delta(text="a")
    await trio.sleep_forever()


def make(generate: Any = two) -> tuple[Any, Handlers, list[Entry]]:
    """The function that serves a stream, who answers, and the journal."""
    entries: list[Entry] = []
    served: list[Any] = []

    class Protocols:
        def serve(self, protocol: Any, serve: Any) -> None:
            served.append(serve)

    protocols: Any = Protocols()
    handlers = Handlers(generate)
    Answers(protocols, handlers, Journal(entries.append))
    return served[0], handlers, entries


async def exchange(serve: Any, *messages: object) -> Line:
    """A stream on which all this was said, a second apart, and which was closed then."""
    line = Line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, line, MEMBER)
        for message in messages:
            await line.put.send(message)
            await trio.sleep(1)
        line.put.close()
    return line


async def test_answer_is_its_deltas_and_an_end(autojump_clock: Clock) -> None:
    serve, _, _ = make()
    line = await exchange(serve, Ask(request=request()))
    grew, end = line.sent
    assert grew == Grew(deltas=(Delta(text="a"), Delta(text="b", finish="stop")))
    assert isinstance(end, End)


async def test_end_tells_the_load_without_the_answer_that_ended(autojump_clock: Clock) -> None:
    serve, handlers, _ = make()
    line = await exchange(serve, Ask(request=request()), QUERY)
    assert [message.load for message in line.sent if isinstance(message, End)] == [
        handlers.load(),
        handlers.load(),
    ]
    assert handlers.active == 0


async def test_cancel_is_answered_by_an_end_with_the_load(autojump_clock: Clock) -> None:
    serve, handlers, _ = make(rest)
    line = await exchange(serve, Ask(request=request()), Cancel())
    assert line.sent[-1] == End(load=handlers.load())


async def test_query_is_found_and_ended(autojump_clock: Clock) -> None:
    serve, handlers, _ = make()
    line = await exchange(serve, QUERY)
    assert line.sent == [Found(reply=Text(text="hi")), End(load=handlers.load())]


async def test_closed_stream_cancels_its_answer(autojump_clock: Clock) -> None:
    serve, handlers, _ = make(rest)
    await exchange(serve, Ask(request=request()))
    assert handlers.active == 0


async def test_second_request_is_the_peers_fault(autojump_clock: Clock) -> None:
    serve, handlers, _ = make(rest)
    with pytest.RaisesGroup(RemoteError):
        await exchange(serve, Ask(request=request()), Ask(request=request()))
    assert handlers.active == 0


async def test_error_is_told_and_is_no_mistake(autojump_clock: Clock) -> None:
    async def refuse() -> AsyncIterator[Delta]:
        raise RequestError("no", param="stop")
        yield Delta()

    serve, _, entries = make(refuse)
    line = await exchange(serve, Ask(request=request()))
    (error,) = line.sent
    assert (error.code, error.param) == ("invalid_value", "stop")
    assert entries == []


async def test_mistake_is_noted_and_not_told(autojump_clock: Clock) -> None:
    async def break_() -> AsyncIterator[Delta]:
        raise ZeroDivisionError("secret")
        yield Delta()

    serve, _, entries = make(break_)
    line = await exchange(serve, Ask(request=request()))
    assert line.sent == [ErrorMessage(code="error", message="an internal error", load=LOAD)]
    assert [entry.event for entry in entries] == ["handler_failed"]


async def test_requests_of_one_peer_are_bounded(autojump_clock: Clock) -> None:
    serve, handlers, _ = make(rest)
    lines = [Line() for _ in range(MAX_REQUESTS + 1)]
    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(serve, line, MEMBER)
            await line.put.send(Ask(request=request()))
        await trio.sleep(1)
        assert handlers.active == MAX_REQUESTS
        errors = [line.sent[0] for line in lines if isinstance(line.sent[0], ErrorMessage)]
        assert [error.code for error in errors] == [Overloaded.code]
        nursery.cancel_scope.cancel()


async def test_what_is_ready_travels_together(autojump_clock: Clock) -> None:
    async def many() -> AsyncIterator[Delta]:
        for place in range(600):
            yield Delta(tokens=(place,))

    serve, _, _ = make(many)
    line = await exchange(serve, Ask(request=request()))
    counts = [len(message.deltas) for message in line.sent if isinstance(message, Grew)]
    assert counts == [256, 256, 88]


async def test_what_is_ready_does_not_wait_for_more(autojump_clock: Clock) -> None:
    serve, _, _ = make(rest)
    line = Line()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, line, MEMBER)
        start = trio.current_time()
        await line.put.send(Ask(request=request()))
        await trio.testing.wait_all_tasks_blocked()
        assert line.sent == [Grew(deltas=(Delta(text="a"),))]
        assert trio.current_time() == start
        nursery.cancel_scope.cancel()


def test_long_deltas_are_spread_over_messages() -> None:
    texts = tuple(Delta(text=name * (4 << 20)) for name in "abc")
    bodies: list[tuple[Delta, ...]] = [
        decode(body, Grew).deltas for body in answering._bodies(texts)
    ]
    assert tuple(delta for deltas in bodies for delta in deltas) == texts
    assert len(bodies) == 2


async def test_error_tells_the_load(autojump_clock: Clock) -> None:
    async def refuse() -> AsyncIterator[Delta]:
        raise Overloaded("full")
        yield Delta()

    serve, handlers, _ = make(refuse)
    line = await exchange(serve, Ask(request=request()))
    (error,) = line.sent
    assert (error.code, error.load) == (Overloaded.code, handlers.load())


async def test_resumed_answers_have_room_where_new_ones_have_none(autojump_clock: Clock) -> None:
    serve, handlers, _ = make(rest)
    resumed = msgspec.structs.replace(request(), resume=(Resume(tokens=(1,)),))
    new = [request()] * MAX_REQUESTS
    asked = [*new, *[resumed] * (MAX_RESUMED - MAX_REQUESTS), request(), resumed]
    lines = [Line() for _ in asked]
    async with trio.open_nursery() as nursery:
        for line, one in zip(lines, asked, strict=True):
            nursery.start_soon(serve, line, MEMBER)
            await line.put.send(Ask(request=one))
            await trio.testing.wait_all_tasks_blocked()
        assert handlers.active == MAX_RESUMED
        refused = [at for at, line in enumerate(lines) if isinstance(line.sent[0], ErrorMessage)]
        assert refused == [MAX_RESUMED, MAX_RESUMED + 1]
        nursery.cancel_scope.cancel()


async def test_streams_of_one_member_are_bounded(autojump_clock: Clock) -> None:
    serve, _, _ = make()
    async with trio.open_nursery() as nursery:
        for _ in range(answering.MAX_STREAMS):
            nursery.start_soon(serve, Line(), MEMBER)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await serve(Line(), MEMBER)
        nursery.start_soon(serve, Line(), Member(PeerId("another"), "member", None))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    line = await exchange(serve, QUERY)
    assert line.sent


async def test_asker_that_takes_no_answer_gets_no_other(autojump_clock: Clock) -> None:
    serve, _, _ = make()
    line = Line()
    line.is_shut = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, line, MEMBER)
        for _ in range(5):
            await line.put.send(QUERY)
            await trio.sleep(1)  # until it is answered, but for the end of the answer
        assert line.sent == [Found(reply=Text(text="hi"))]
        nursery.cancel_scope.cancel()


async def test_stream_whose_end_cannot_be_told_is_reset(autojump_clock: Clock) -> None:
    serve, _, _ = make()
    line = Line()
    line.is_broken = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, line, MEMBER)
        await line.put.send(QUERY)
        await trio.sleep(1)
        assert line.is_reset
        nursery.cancel_scope.cancel()
