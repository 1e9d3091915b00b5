"""Questions and answers between two nodes on the memory network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
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
    TextPrompt,
)
from p2p_mesh.core.wire import Ask, Cancel, End, ErrorMessage, Found, Grew, Look, encode
from p2p_mesh.errors import (
    EngineDied,
    HandedOver,
    MeshError,
    Overloaded,
    RemoteError,
    RequestError,
    Unavailable,
    UnknownModel,
)
from p2p_mesh.net import answering, inference
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, echo, opened, request, text_of, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock


async def slow(asked: InferenceRequest) -> AsyncIterator[Delta]:
    """Grows by a character each second."""
    for place in range(10_000):
        yield Delta(text="x", tokens=(place,))
        await trio.sleep(1)


async def spell(query: Query) -> Reply:
    assert isinstance(query, DetokenizeQuery)
    return Text(text=bytes(query.tokens).decode())


@dataclass
class Looking(Node):
    """A node that also answers queries."""

    reply: Callable[[Query], Awaitable[Reply]] = spell

    async def look(self, query: Query, asker: Member) -> Reply:
        self.asked.append((query.model, asker.peer))
        return await self.reply(query)


@asynccontextmanager
async def pair(
    generate: Any = echo, reply: Any = spell, **more: Any
) -> AsyncIterator[tuple[Node, Node]]:
    """A node that asks, and one that answers; they know each other."""
    wire, mesh = MemoryNetwork(**more), Mesh()
    node, asker = mesh.node(), mesh.node()
    server = Looking(node.identity, node.mesh_key, node.credential, generate, reply=reply)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(opened(server, transport=wire.transport()))
        await stack.enter_async_context(
            opened(asker, transport=wire.transport(), seeds=server.seeds())
        )
        await until(lambda: asker.came and server.came, seconds=60)
        yield asker, server


@asynccontextmanager
async def raw(asker: Node, server: Node) -> AsyncIterator[Stream]:
    """A stream of the inference protocol, for an asker that keeps to no rule."""
    async with asker.net._protocols.open(server.peer_id, inference.PROTOCOL) as stream:
        yield stream


async def test_answer_arrives_whole(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        async with asker.net.ask(server.peer_id, request("hi")) as deltas:
            got = [delta async for delta in deltas]
        assert [delta.text for delta in got] == ["h", "i", ""]
        assert got[-1].finish == "stop"
        assert got[-1].usage is not None


async def test_streams_are_reused(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        for _ in range(20):
            assert await text_of(asker, server.peer_id) == "hello"
        assert asker.net._questions._open[server.peer_id] == 1


async def test_open_stream_costs_one_round_trip(autojump_clock: Clock) -> None:
    async with pair(latency=0.5) as (asker, server):
        await text_of(asker, server.peer_id)
        start = trio.current_time()
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await anext(deltas)
        assert trio.current_time() - start == pytest.approx(1.0, abs=0.05)


async def test_deltas_that_wait_travel_together(autojump_clock: Clock) -> None:
    async with pair() as (asker, server), raw(asker, server) as stream:
        await stream.tell(Ask(request=request("y" * 2000)))
        sizes = []
        while isinstance(message := await stream.hear(Grew | End), Grew):
            sizes.append(len(message.deltas))
        assert sum(sizes) == 2001
        assert len(sizes) < 1000


async def test_leaving_early_cancels_at_once(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server):
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await anext(deltas)
        await until(lambda: server.stopped == ["r"], seconds=0.1)


async def test_cancelled_stream_is_reused(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server):
        for _ in range(5):
            async with asker.net.ask(server.peer_id, request()) as deltas:
                await anext(deltas)
            await trio.sleep(1)
        assert asker.net._questions._open[server.peer_id] == 1
        assert len(server.stopped) == 5


async def test_stream_that_does_not_end_is_reset(autojump_clock: Clock) -> None:
    async def stubborn(asked: InferenceRequest) -> AsyncIterator[Delta]:
        yield Delta(text="x")
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with pair(stubborn) as (asker, server):
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await anext(deltas)
        await trio.sleep(inference.CANCEL_DEADLINE + 1)
        assert not asker.net._questions._open


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("no such model"),
        RequestError("too long", param="messages"),
        Overloaded("full", retry_after=3.0),
        HandedOver("another has more", param="peer"),
        EngineDied("it died"),
    ],
)
async def test_errors_keep_their_kind(error: MeshError, autojump_clock: Clock) -> None:
    async def failing(asked: InferenceRequest) -> AsyncIterator[Delta]:
        yield Delta(text="x")
        raise error

    async with pair(failing) as (asker, server):
        with pytest.raises(type(error), match=str(error)) as caught:
            await text_of(asker, server.peer_id)
        assert caught.value.param == error.param
        assert caught.value.retry_after == error.retry_after
        assert asker.net._questions._open[server.peer_id] == 1


async def test_mistake_of_the_server_is_no_disaster(autojump_clock: Clock) -> None:
    async def broken(asked: InferenceRequest) -> AsyncIterator[Delta]:
        yield Delta(text="x")
        raise ZeroDivisionError

    async with pair(broken) as (asker, server):
        with pytest.raises(MeshError, match="internal"):
            await text_of(asker, server.peer_id)
        assert server.events("handler_failed")
        server.generate = slow
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await anext(deltas)


async def test_dead_server_is_seen_at_once(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    server, asker = mesh.node(generate=slow), mesh.node()
    machine = wire.transport()
    async with (
        opened(asker, transport=wire.transport()),
        opened(server, transport=machine, seeds=asker.seeds()),
    ):
        await until(lambda: asker.came)
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await anext(deltas)
            wire.kill(machine)
            with trio.fail_after(1), pytest.raises(Unavailable):
                async for _ in deltas:
                    pass
        assert not asker.net._questions._open


GONE = Unavailable("it hangs")


async def test_failed_peer_ends_its_answers_at_once(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server), AsyncExitStack() as stack:
        answers = [
            await stack.enter_async_context(asker.net.ask(server.peer_id, request()))
            for _ in range(3)
        ]
        for deltas in answers:
            await anext(deltas)
        start = trio.current_time()
        asker.net._questions.fail(server.peer_id, GONE)
        for deltas in answers:
            with pytest.raises(Unavailable, match="it hangs"):
                await anext(deltas)
        assert trio.current_time() == start
        await until(lambda: not asker.net._questions._open)
        assert not asker.net._questions._lines
        await until(lambda: len(server.stopped) == 3)


async def test_failed_peer_is_asked_over_a_new_stream(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        await text_of(asker, server.peer_id)
        (line,) = asker.net._questions._lines[server.peer_id]
        asker.net._questions.fail(server.peer_id, GONE)
        assert await text_of(asker, server.peer_id) == "hello"
        assert line not in asker.net._questions._lines[server.peer_id]


async def test_failing_a_peer_of_no_questions_is_harmless(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        asker.net._questions.fail(server.peer_id, GONE)
        assert await text_of(asker, server.peer_id) == "hello"


@pytest.mark.parametrize("prompt", ["small", "x" * (8 << 20)], ids=["opening", "sending"])
async def test_failed_peer_ends_what_is_being_sent(prompt: str, autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    server, asker = mesh.node(), mesh.node()
    machine = wire.transport()
    async with (
        opened(asker, transport=wire.transport()),
        opened(server, transport=machine, seeds=asker.seeds()),
    ):
        await until(lambda: asker.came)
        if prompt != "small":
            await text_of(asker, server.peer_id)
        wire.freeze(machine)
        failed: list[MeshError] = []

        async def ask() -> None:
            try:
                await text_of(asker, server.peer_id, prompt)
            except MeshError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            assert not failed
            asker.net._questions.fail(server.peer_id, GONE)
            await until(lambda: failed == [GONE], seconds=0.1)
        await until(lambda: not asker.net._questions._open)


async def test_frames_show_that_a_peer_lives(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[PeerId] = []
    async with pair() as (asker, server):
        monkeypatch.setattr(asker.net._questions, "alive", seen.append)
        await text_of(asker, server.peer_id)
        assert set(seen) == {server.peer_id}


LOAD = ModelLoad(model=ModelId("m"), slots=2, active=1, queued=3)


async def test_end_says_how_busy_the_peer_is(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        await text_of(asker, server.peer_id)
        assert asker.heard_loads == []
        server.loads = (LOAD,)
        await text_of(asker, server.peer_id)
        await asker.net.query(server.peer_id, QUERY)
        assert asker.heard_loads == [(server.peer_id, (LOAD,))] * 2


async def test_end_has_room_for_so_many_loads(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        server.loads = (LOAD,) * 300
        await text_of(asker, server.peer_id)
        assert [len(loads) for _, loads in asker.heard_loads] == [256]


async def test_dead_asker_frees_the_engine(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    server, asker = mesh.node(generate=slow), mesh.node()
    machine = wire.transport()
    async with (
        opened(server, transport=wire.transport()),
        opened(asker, transport=machine, seeds=server.seeds()),
        asker.net.ask(server.peer_id, request()) as deltas,
    ):
        await anext(deltas)
        wire.kill(machine)
        await until(lambda: server.stopped == ["r"], seconds=1)


async def test_silent_server_is_given_up(autojump_clock: Clock) -> None:
    async def silent(asked: InferenceRequest) -> AsyncIterator[Delta]:
        await trio.sleep(10_000)
        yield Delta()

    async with pair(silent) as (asker, server):
        with pytest.raises(Unavailable, match="silent"):
            await text_of(asker, server.peer_id)


async def test_too_many_requests_are_refused(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server), AsyncExitStack() as stack:
        for _ in range(inference.MAX_REQUESTS):
            deltas = await stack.enter_async_context(asker.net.ask(server.peer_id, request()))
            await anext(deltas)
        with pytest.raises(Overloaded):
            await text_of(asker, server.peer_id)
        async with raw(asker, server) as stream:
            await stream.tell(Ask(request=request()))
            answer = await stream.hear(Grew | ErrorMessage)
            assert isinstance(answer, ErrorMessage)
            assert answer.code == "overloaded"


async def test_answers_that_go_on_find_room_where_new_ones_find_none(
    autojump_clock: Clock,
) -> None:
    resumed = msgspec.structs.replace(request(), resume=(Resume(tokens=(1,)),))
    async with pair(slow) as (asker, server):
        async with AsyncExitStack() as stack:
            for place in range(inference.MAX_RESUMED):
                one = request() if place < inference.MAX_REQUESTS else resumed
                deltas = await stack.enter_async_context(asker.net.ask(server.peer_id, one))
                await anext(deltas)
            for one in (request(), resumed):
                with pytest.raises(Overloaded):
                    async with asker.net.ask(server.peer_id, one):
                        pass
        await until(lambda: len(server.stopped) == inference.MAX_RESUMED)
        await trio.sleep(1)
        # The streams that are left in the pool make no more room for new ones.
        async with AsyncExitStack() as stack:
            for _ in range(inference.MAX_REQUESTS):
                await stack.enter_async_context(asker.net.ask(server.peer_id, request()))
            with pytest.raises(Overloaded):
                await text_of(asker, server.peer_id)


async def test_error_says_how_busy_the_peer_is(autojump_clock: Clock) -> None:
    async def full(asked: InferenceRequest) -> AsyncIterator[Delta]:
        raise Overloaded("full")
        yield Delta()

    async with pair(full) as (asker, server):
        server.loads = (LOAD,)
        with pytest.raises(Overloaded):
            await text_of(asker, server.peer_id)
        assert asker.heard_loads == [(server.peer_id, (LOAD,))]


async def test_answer_of_which_a_part_cannot_be_sent_ends_at_once(autojump_clock: Clock) -> None:
    async def large(asked: InferenceRequest) -> AsyncIterator[Delta]:
        yield Delta(text="x")
        yield Delta(text="y" * (8 << 20))

    async with pair(large) as (asker, server), raw(asker, server) as stream:
        await stream.tell(Ask(request=request()))
        await trio.sleep(60)  # nothing is read
        with trio.fail_after(1), pytest.raises(Unavailable, match="in the middle"):
            await stream.hear(Grew | ErrorMessage)


async def test_slow_asker_loses_its_answer_only(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "CREDIT", 100_000)

    async def flood(asked: InferenceRequest) -> AsyncIterator[Delta]:
        while True:
            yield Delta(text="x" * 10_000)
            await trio.sleep(0.1)

    async with pair(flood) as (asker, server):
        async with asker.net.ask(server.peer_id, request()) as deltas:
            await trio.sleep(30)
            with pytest.raises(RequestError, match="faster"):
                async for _ in deltas:
                    pass
        assert server.stopped == ["r"]
        assert set(asker.net.members()) == {server.peer_id}


async def test_huge_request_is_refused_here(autojump_clock: Clock) -> None:
    huge = InferenceRequest(id="r", model="m", prompt=TextPrompt(text="x" * (9 << 20)))  # type: ignore[arg-type]
    async with pair() as (asker, server):
        with pytest.raises(RequestError, match="can travel"):
            async with asker.net.ask(server.peer_id, huge):
                pass


async def test_large_request_arrives(autojump_clock: Clock) -> None:
    async def count(asked: InferenceRequest) -> AsyncIterator[Delta]:
        assert isinstance(asked.prompt, TextPrompt)
        yield Delta(text=str(len(asked.prompt.text)))

    async with pair(count) as (asker, server):
        assert await text_of(asker, server.peer_id, "x" * (8 << 20)) == str(8 << 20)


async def test_long_deltas_that_wait_fit_into_messages(autojump_clock: Clock) -> None:
    texts = [name * (4 << 20) for name in "abcde"]

    async def burst(asked: InferenceRequest) -> AsyncIterator[Delta]:
        for text in texts:
            yield Delta(text=text)

    async with pair(burst) as (asker, server):
        assert await text_of(asker, server.peer_id) == "".join(texts)


async def test_delta_that_cannot_travel_says_so(autojump_clock: Clock) -> None:
    async def huge(asked: InferenceRequest) -> AsyncIterator[Delta]:
        yield Delta(text="x" * (9 << 20))

    async with pair(huge) as (asker, server):
        with pytest.raises(RequestError, match="a part of the answer has"):
            await text_of(asker, server.peer_id)


QUERY = DetokenizeQuery(model=ModelId("m"), tokens=(104, 105))


async def test_query_has_its_reply(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        for _ in range(3):
            assert await asker.net.query(server.peer_id, QUERY) == Text(text="hi")
        assert await text_of(asker, server.peer_id) == "hello"
        assert asker.net._questions._open[server.peer_id] == 1
        assert server.asked[0] == ("m", asker.peer_id)


async def test_error_of_a_query_keeps_its_kind(autojump_clock: Clock) -> None:
    async def refuse(query: Query) -> Reply:
        raise RequestError("no such token", param="tokens")

    async with pair(reply=refuse) as (asker, server):
        with pytest.raises(RequestError, match="no such token") as caught:
            await asker.net.query(server.peer_id, QUERY)
        assert caught.value.param == "tokens"
        assert asker.net._questions._open[server.peer_id] == 1


async def test_reply_that_cannot_travel_says_so(autojump_clock: Clock) -> None:
    async def flood(query: Query) -> Reply:
        return Text(text="x" * (9 << 20))

    async with pair(reply=flood) as (asker, server):
        with pytest.raises(RequestError, match="the reply has 9437223 bytes, and 9437184 can"):
            await asker.net.query(server.peer_id, QUERY)


async def test_query_that_is_left_is_cancelled(autojump_clock: Clock) -> None:
    stopped = trio.Event()

    async def rest(query: Query) -> Reply:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with pair(reply=rest) as (asker, server):
        with trio.move_on_after(2):
            await asker.net.query(server.peer_id, QUERY)
        await until(stopped.is_set, seconds=0.1)
        await trio.sleep(1)
        assert await text_of(asker, server.peer_id) == "hello"
        assert asker.net._questions._open[server.peer_id] == 1


async def test_queries_count_among_the_requests(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server), AsyncExitStack() as stack:
        for _ in range(inference.MAX_REQUESTS):
            deltas = await stack.enter_async_context(asker.net.ask(server.peer_id, request()))
            await anext(deltas)
        with pytest.raises(Overloaded):
            await asker.net.query(server.peer_id, QUERY)


async def test_huge_query_is_refused_here(autojump_clock: Clock) -> None:
    huge = DetokenizeQuery(model=ModelId("m" * (9 << 20)), tokens=())
    async with pair() as (asker, server):
        with pytest.raises(RequestError, match="can travel"):
            await asker.net.query(server.peer_id, huge)


def pool_of(later: list[Any]) -> Any:
    """A pool that starts no tasks, but keeps them."""
    return SimpleNamespace(
        start=later.append, free=lambda line: None, alive=lambda peer: None, heard_load=None
    )


async def lying(wire: list[object], question: Any) -> list[Any]:
    """What an asker gets of a peer that says these messages."""
    stream: Any = Wire()
    line = inference._Line(stream, pool_of([]))
    answer = await line.ask(b"", question)
    for message in wire:
        line._hear(encode(message))
    return [item async for item in answer]


REPLY = Found(reply=Text(text="x"))


async def test_peer_answers_in_the_kind_of_the_question() -> None:
    assert await lying([REPLY, End()], Found) == [Text(text="x")]
    with pytest.raises(RemoteError, match="another question"):
        await lying([REPLY], Grew)
    with pytest.raises(RemoteError, match="another question"):
        await lying([Grew(deltas=(Delta(text="x"),))], Found)


@pytest.mark.parametrize(
    ("wire", "why"), [([End()], "without a reply"), ([REPLY, REPLY, End()], "more than one")]
)
async def test_query_has_one_reply(
    wire: list[Any], why: str, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(answers: Any, stream: Stream, member: Member) -> None:
        await stream.hear(Look)
        for message in wire:
            await stream.tell(message)
        await trio.sleep(1)

    monkeypatch.setattr(answering.Answers, "_serve", serve)
    async with pair() as (asker, server):
        with pytest.raises(RemoteError, match=why):
            await asker.net.query(server.peer_id, QUERY)


async def test_second_request_on_a_busy_stream_is_an_offence(autojump_clock: Clock) -> None:
    async with pair(slow) as (asker, server), raw(asker, server) as stream:
        await stream.tell(Ask(request=request()))
        await stream.hear(Grew)
        await stream.tell(Ask(request=request()))
        while isinstance(answer := await stream.hear(Grew | ErrorMessage), Grew):
            pass
        assert answer.code == "bad_peer"
        assert "before the last one ended" in answer.message
        assert server.events("bad_peer")
        await until(lambda: server.stopped == ["r"])


async def test_cancel_of_nothing_is_ignored(autojump_clock: Clock) -> None:
    async with pair() as (asker, server), raw(asker, server) as stream:
        await stream.tell(Cancel())
        await stream.tell(Ask(request=request("a")))
        await stream.hear(Grew)
        while not isinstance(await stream.hear(Grew | End), End):
            pass
        await stream.tell(Cancel())
        await stream.tell(Ask(request=request("b")))
        assert isinstance(await stream.hear(Grew | End), Grew)


async def test_half_a_message_ends_the_stream_only(autojump_clock: Clock) -> None:
    async with pair() as (asker, server):
        async with raw(asker, server) as stream:
            await stream._raw.write(b"\x50half")
        assert await text_of(asker, server.peer_id) == "hello"


async def test_client_may_ask(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(), Mesh()
    server, client = mesh.node(), mesh.node(role="client")
    async with (
        opened(server, transport=wire.transport()),
        opened(client, transport=wire.transport(), seeds=server.seeds()),
    ):
        assert await text_of(client, server.peer_id) == "hello"


class Wire:
    """A stream that only remembers what was sent."""

    peer = PeerId("peer")

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def send(self, frame: bytes) -> None:
        self.sent.append(frame)

    async def tell(self, message: object) -> None:
        self.sent.append(encode(message))


async def test_late_cancel_does_not_hit_the_next_question() -> None:
    # The end of an answer and its asker's leaving may cross: the line then carries another one.
    wire: Any = Wire()
    later: list[Any] = []
    line = inference._Line(wire, pool_of(later))
    first = await line.ask(b"first", Grew)
    line.leave(first)
    line._hear(encode(End()))
    await line.ask(b"second", Grew)
    for task in later:
        await task()
    assert wire.sent == [b"first", b"second"]


@pytest.mark.parametrize("is_failed", [True, False], ids=["failed", "late"])
async def test_line_that_is_given_up_carries_no_other_answer(
    is_failed: bool, autojump_clock: Clock
) -> None:
    wire: Any = Wire()
    freed: list[Any] = []
    pool = pool_of([])
    pool.free = freed.append
    line = inference._Line(wire, pool)
    await line.ask(b"first", Grew)
    with line._reading:
        if is_failed:
            line.fail(GONE)
        else:
            line._reading.deadline = trio.current_time()
        line._hear(encode(End()))
        assert not freed
        await trio.sleep_forever()
    assert line._reading.cancelled_caught


async def test_delta_that_comes_alone_is_offered_before_the_asker_has_his_turn() -> None:
    """Those that nobody takes, and all that come together, go to the asker."""
    answer, taken, read = inference._Answer(Grew), list[str](), list[str]()

    def take(delta: Delta) -> bool:
        taken.append(delta.text)
        return delta.text != "refused"

    def grow(*texts: str) -> None:
        answer.grow(Grew(deltas=tuple(Delta(text=text) for text in texts)), 10)

    answer.offer(take)
    grow("nobody waits")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader() -> None:
            read.extend([delta.text async for delta in answer])

        await trio.testing.wait_all_tasks_blocked()
        grow("a")
        assert answer.held == 0
        grow("refused")
        grow("after it")
        assert answer.held == 20
        await trio.testing.wait_all_tasks_blocked()
        grow("b", "c")
        answer.finish(None)
    assert taken == ["a", "refused"]
    assert read == ["nobody waits", "refused", "after it", "b", "c"]
