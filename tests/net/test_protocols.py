"""Framed streams between members: backends' own protocols, versions, ends and errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID

from p2p_mesh.core.invite import Member
from p2p_mesh.core.wire import End, ErrorMessage, frame
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net import protocols
from p2p_mesh.net.protocols import Drained, Gathered, Protocol, Stream
from p2p_mesh.testing.members import Mesh, Node, opened, text_of, until
from p2p_mesh.testing.network import MemoryNetwork
from p2p_mesh.testing.offering import Spring

Clock = trio.testing.MockClock


@asynccontextmanager
async def pair(role: Any = "member") -> AsyncIterator[tuple[Node, Node]]:
    wire, mesh = MemoryNetwork(), Mesh()
    server, opener = mesh.node(), mesh.node(role=role)
    async with (
        opened(server, transport=wire.transport()),
        opened(opener, transport=wire.transport(), seeds=server.seeds()),
    ):
        await until(lambda: opener.came and server.came)
        yield opener, server


async def upper(stream: Drained, member: Member) -> None:
    while True:
        await stream.send((await stream.receive()).upper())


async def shout(opener: Node, server: Node) -> bytes:
    async with opener.net.open_stream(server.peer_id, "shout") as stream:
        await stream.send(b"a")
        return await stream.receive()


async def test_backend_speaks_its_own_protocol(autojump_clock: Clock) -> None:
    async with pair() as (opener, server):
        server.net.serve_protocol("shout", upper)
        async with opener.net.open_stream(server.peer_id, "shout") as stream:
            for word in (b"a", b"", b"long" * 100_000):
                await stream.send(word)
                assert await stream.receive() == word.upper()


async def test_reader_that_rests_loses_nothing(autojump_clock: Clock) -> None:
    # Defect F: unread for five seconds, the window full, libp2p would reset the stream.
    async def flood(stream: Drained, member: Member) -> None:
        for _ in range(16):
            await stream.send(bytes(1 << 20))
        await trio.sleep(60)

    async with pair() as (opener, server):
        server.net.serve_protocol("flood", flood)
        async with opener.net.open_stream(server.peer_id, "flood") as stream:
            await trio.sleep(20)
            for _ in range(16):
                assert len(await stream.receive()) == 1 << 20


async def test_frames_are_heard_as_they_come(autojump_clock: Clock) -> None:
    async with pair() as (opener, server):
        server.net.serve_protocol("shout", upper)
        heard: list[bytes] = []
        async with opener.net.open_stream(server.peer_id, "shout") as stream:
            assert stream.send_nowait(b"early")
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.listen, heard.append)
                await stream.send(b"late")
                await stream.send(bytes(3 << 20))
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
        assert heard == [b"EARLY", b"LATE", bytes(3 << 20)]


async def test_what_a_listener_raises_ends_its_stream(autojump_clock: Clock) -> None:
    def refuse(frame: bytes) -> None:
        raise RemoteError("not this")

    async with pair() as (opener, server):
        server.net.serve_protocol("shout", upper)
        async with opener.net.open_stream(server.peer_id, "shout") as stream:
            await stream.send(b"a")
            with pytest.raises(RemoteError, match="not this"):
                await stream.listen(refuse)
        assert await text_of(opener, server.peer_id) == "hello"


async def test_frame_of_the_largest_size_passes(autojump_clock: Clock) -> None:
    async with pair() as (opener, server):
        server.net.serve_protocol("shout", upper)
        async with opener.net.open_stream(server.peer_id, "shout") as stream:
            await stream.send(bytes(protocols.FOREIGN_LIMIT))
            assert len(await stream.receive()) == protocols.FOREIGN_LIMIT


async def test_credit_ends_the_stream_only(autojump_clock: Clock) -> None:
    async def flood(stream: Drained, member: Member) -> None:
        while True:
            await stream.send(bytes(100))

    async with pair() as (opener, server):
        server.net.serve_protocol("flood", flood)
        opening = opener.net._protocols.open(server.peer_id, Protocol("flood"))
        async with opening as stream, protocols.drained(stream, credit=1000) as frames:
            await trio.sleep(5)
            for _ in range(11):
                await frames.receive()
            with pytest.raises(Unavailable, match="more than could be taken"):
                await frames.receive()
        assert await text_of(opener, server.peer_id) == "hello"


async def test_client_opens_no_backend_protocol(autojump_clock: Clock) -> None:
    async with pair(role="client") as (client, server):
        server.net.serve_protocol("shout", upper)
        # Refused while it is opened, or right after: as the reset happens to arrive.
        with pytest.raises(Unavailable):
            await shout(client, server)
        assert "without the right" in server.events("bad_peer")[0].message


async def test_end_without_a_word_is_a_failure(autojump_clock: Clock) -> None:
    async def curt(stream: Drained, member: Member) -> None: ...

    async with pair() as (opener, server):
        server.net.serve_protocol("curt", curt)
        async with opener.net._protocols.open(server.peer_id, Protocol("curt")) as stream:
            with pytest.raises(Unavailable, match="closed the stream"):
                await protocols.hear_end(stream)


async def test_break_in_a_message_is_named(autojump_clock: Clock) -> None:
    async def half(stream: Stream, member: Member) -> None:
        await stream._raw.write(b"\x10abc")

    async with pair() as (opener, server):
        server.net._protocols.serve(Protocol("half"), half)
        async with opener.net._protocols.open(server.peer_id, Protocol("half")) as stream:
            with pytest.raises(Unavailable, match="in the middle"):
                await stream.receive()


@pytest.mark.parametrize("data", [frame(End())[:1] + b"\xc1", b"\xff\xff\xff\xff\xff\x01"])
async def test_malformed_message_gets_an_error(data: bytes, autojump_clock: Clock) -> None:
    async def listen(stream: Stream, member: Member) -> None:
        await stream.hear(End)

    async with pair() as (opener, server):
        server.net._protocols.serve(Protocol("listen"), listen)
        async with opener.net._protocols.open(server.peer_id, Protocol("listen")) as stream:
            await stream._raw.write(data + bytes(10))
            answer = await stream.hear(ErrorMessage)
            assert isinstance(answer.error(), RemoteError)
        assert server.events("bad_peer")


async def test_mistake_in_a_handler_is_told(autojump_clock: Clock) -> None:
    async def broken(stream: Stream, member: Member) -> None:
        raise ZeroDivisionError

    async with pair() as (opener, server):
        server.net._protocols.serve(Protocol("broken"), broken)
        async with opener.net._protocols.open(server.peer_id, Protocol("broken")) as stream:
            assert (await stream.hear(ErrorMessage)).code == "error"
        assert server.events("handler_failed")


async def test_other_version_is_named(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair() as (opener, server):
        with monkeypatch.context() as patch:
            patch.setattr(protocols, "VERSION", "2.0.0")
            server.net.serve_protocol("shout", upper)
        # As identify would have told, had the protocol been there from the start.
        opener.net._host.libp2p.get_peerstore().add_protocols(
            ID.from_base58(server.peer_id), ["/meshnode/shout/2.0.0"]
        )
        with pytest.raises(Unavailable, match=r"the peer speaks shout 2\.0\.0, this node 1\.0\.0"):
            async with opener.net.open_stream(server.peer_id, "shout"):
                pass


async def count(most: int) -> AsyncIterator[int]:
    for number in range(most):
        yield number


async def test_items_that_wait_are_taken_together(autojump_clock: Clock) -> None:
    gathered = Gathered[int](most=100)
    await gathered.collect(count(5))
    assert await gathered.take(3) == (0, 1, 2)
    assert await gathered.take(3) == (3, 4)
    assert await gathered.take(3) == ()


async def test_item_that_comes_alone_is_sent_at_once(autojump_clock: Clock) -> None:
    sent: list[int] = []

    def send(item: int) -> bool:
        sent.append(item)
        return item != 3  # then there is no room

    async def apart() -> AsyncIterator[int]:
        for number in range(5):
            yield number
            await trio.sleep(1)

    gathered, came = Gathered[int](100, send), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gathered.collect, apart())
        while batch := await gathered.take(9):
            came.append(batch)
    # Of the first it is not known that it is alone.
    assert sent == [1, 2, 3, 4]
    assert came == [(0,), (3,)]


async def test_item_does_not_overtake_those_that_wait(autojump_clock: Clock) -> None:
    async def apart() -> AsyncIterator[int]:
        for number in range(4):
            yield number
            await trio.sleep(1)

    gathered = Gathered[int](100, lambda item: pytest.fail("overtook"))
    await gathered.collect(apart())
    assert await gathered.take(9) == (0, 1, 2, 3)


async def test_items_rest_while_many_wait(autojump_clock: Clock) -> None:
    gathered, came = Gathered[int](most=2), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gathered.collect, count(7))
        while batch := await gathered.take(9):
            came.append(batch)
    assert [number for batch in came for number in batch] == [*range(7)]
    assert max(map(len, came)) == 2


async def test_item_that_is_offered_is_sent_before_the_reader_has_his_turn(
    autojump_clock: Clock,
) -> None:
    sent: list[int] = []

    def send(item: int) -> bool:
        sent.append(item)
        if item == 4:
            raise Unavailable("gone")
        return item != 3

    gathered, spring, came = Gathered[int](100, send), Spring[int](), list[tuple[int, ...]]()

    async def take() -> None:
        while batch := await gathered.take(9):
            came.append(batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gathered.collect, spring)
        nursery.start_soon(take)
        for number in range(6):
            await trio.sleep(1)
            # Of the first it is not known that it is alone.
            assert spring.pour(number) == (number in (1, 2, 5))
        spring.pour(None)
    assert sent == [1, 2, 3, 4, 5]
    assert came == [(0,), (3,), (4,)]
