"""Files by SHA-256 over the memory network, from peers that are honest and from others."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from p2p_mesh.core.artifacts import (
    CHUNK,
    MAX_ASKED,
    MAX_RANGE,
    AskHeld,
    Data,
    Found,
    Get,
    HeldFiles,
    Lacking,
)
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import Digest
from p2p_mesh.core.wire import ErrorMessage, encode
from p2p_mesh.errors import Overloaded, RemoteError, Unavailable
from p2p_mesh.net import artifacts
from p2p_mesh.net.artifacts import IDLE, MAX_TO_ONE, PROTOCOL, SILENCE, Line
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock

DATA = Random(1).randbytes(3 * MAX_RANGE // 2)
FILE = Digest(hashlib.sha256(DATA).hexdigest())
PACKAGE, OTHER = Digest("b" * 64), Digest("c" * 64)


class Blob:
    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self.size = len(data)
        self._data, self._error = data, error

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if self._error is not None and offset:
            raise self._error
        return self._data[offset : offset + length]


class Library:
    """One file, which is all of one package."""

    def __init__(self, data: bytes = DATA, error: Exception | None = None) -> None:
        self._blob = Blob(data, error)

    def find(self, sha256: Digest) -> Blob | None:
        return self._blob if sha256 == FILE else None

    def held(self, manifest: Digest) -> Collection[Digest]:
        return {FILE, OTHER} if manifest == PACKAGE else ()


async def part(line: Line, offset: int, length: int) -> bytes:
    found = await line.get(FILE, offset, length)
    assert found is not None
    return bytes(found)


Serve = Callable[[Stream, Member], Any]


@asynccontextmanager
async def pair(serving: Library | Serve | None, **asking: Any) -> AsyncIterator[tuple[Node, Node]]:
    wire, mesh = MemoryNetwork(0.001), Mesh()
    first, second = mesh.node(), mesh.node(**asking)
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        if isinstance(serving, Library):
            first.net.artifacts.serve(serving)
        elif serving is not None:
            first.net._protocols.serve(PROTOCOL, serving)
        await until(lambda: first.came and second.came)
        yield first, second


async def test_ranges_come_as_they_stand_in_the_file(autojump_clock: Clock) -> None:
    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        assert await part(line, 5, CHUNK * 3) == DATA[5 : 5 + CHUNK * 3]
        assert await part(line, len(DATA), 10) == b""
        assert await part(line, len(DATA) - 3, 10) == DATA[-3:]


async def test_answers_come_in_the_order_of_the_asks(autojump_clock: Clock) -> None:
    ends: list[int] = []

    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
        trio.open_nursery() as nursery,
    ):

        async def ask(number: int) -> None:
            assert await part(line, number * 1000, 1000) == DATA[number * 1000 :][:1000]
            ends.append(number)

        for number in range(MAX_ASKED):
            nursery.start_soon(ask, number)
            await trio.testing.wait_all_tasks_blocked()
    assert ends == list(range(MAX_ASKED))


async def test_whole_file_is_checked(autojump_clock: Clock) -> None:
    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        assert await line.whole(FILE, len(DATA)) == DATA
        assert await line.whole(OTHER, len(DATA)) is None
        with pytest.raises(RemoteError, match="are the most"):
            await line.whole(FILE, len(DATA) - 1)
    async with pair(Library(DATA[:-1])) as (first, second):
        with pytest.raises(RemoteError, match="another SHA-256"):
            async with second.net.artifacts.open(first.peer_id) as line:
                await line.whole(FILE, len(DATA))
        assert second.events("bad_peer")


async def test_what_is_not_served_is_lacking(autojump_clock: Clock) -> None:
    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        assert await line.get(OTHER, 0, 10) is None
        assert await line.held(PACKAGE) == {FILE, OTHER}
        assert await line.held(OTHER) == frozenset()


async def test_client_gets_nothing(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(0.001), Mesh()
    first, second = mesh.node(), mesh.node(role="client")
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        first.net.artifacts.serve(Library())
        await until(lambda: first.came and second.came)
        with pytest.raises(Unavailable):
            async with second.net.artifacts.open(first.peer_id) as line:
                await line.get(FILE, 0, 10)
        assert first.events("bad_peer")


async def test_node_without_a_library_does_not_speak_it(autojump_clock: Clock) -> None:
    async with pair(None) as (first, second):
        with pytest.raises(Unavailable):
            async with second.net.artifacts.open(first.peer_id):
                pass


async def test_file_that_is_gone_ends_the_stream(autojump_clock: Clock) -> None:
    async with (
        pair(Library(error=Unavailable("it was deleted"))) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        with pytest.raises(Unavailable, match="it was deleted"):
            await line.get(FILE, 0, MAX_RANGE)
        with pytest.raises(Unavailable):
            await line.get(FILE, 0, 10)


async def test_member_has_so_many_streams_and_no_more(autojump_clock: Clock) -> None:
    async with pair(Library()) as (first, second), AsyncExitStack() as stack:
        for _ in range(MAX_TO_ONE):
            line = await stack.enter_async_context(second.net.artifacts.open(first.peer_id))
            assert await part(line, 0, 1) == DATA[:1]
        with pytest.raises(Overloaded) as caught:
            async with second.net.artifacts.open(first.peer_id) as line:
                await line.get(FILE, 0, 1)
        assert caught.value.retry_after
        await stack.aclose()
        await until(lambda: not first.net.artifacts._streams)
        async with second.net.artifacts.open(first.peer_id) as line:
            assert await part(line, 0, 1) == DATA[:1]


async def test_idle_stream_is_closed(autojump_clock: Clock) -> None:
    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        assert await part(line, 0, 1) == DATA[:1]
        await trio.sleep(IDLE + 1)
        assert not first.net.artifacts._streams
        with pytest.raises(Unavailable):
            await line.get(FILE, 0, 1)


async def test_more_asks_than_allowed_are_the_askers_fault(autojump_clock: Clock) -> None:
    async with pair(Library()) as (first, second):
        async with second.net._protocols.open(first.peer_id, PROTOCOL) as stream:
            for _ in range(MAX_ASKED * 4):
                await stream.tell(Get(sha256=FILE, length=MAX_RANGE))
            message: Any = Found(size=0)
            while not isinstance(message, ErrorMessage):
                message = await stream.hear(Found | Data | ErrorMessage)
            assert "at a time" in message.message
        assert first.events("bad_peer")


async def test_cancelled_ask_does_not_spoil_the_next(autojump_clock: Clock) -> None:
    async with (
        pair(Library()) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        with trio.move_on_after(0.0001):
            await line.get(FILE, 0, MAX_RANGE)
        assert await part(line, 7, 7) == DATA[7:14]


async def test_silent_peer_is_given_up(autojump_clock: Clock) -> None:
    async def silent(stream: Stream, member: Member) -> None:
        await trio.sleep(3600)

    async with (
        pair(silent) as (first, second),
        second.net.artifacts.open(first.peer_id) as line,
    ):
        before = trio.current_time()
        with pytest.raises(Unavailable, match="silent"):
            await line.get(FILE, 0, 1)
        assert SILENCE - 1 <= trio.current_time() - before <= SILENCE + 1


async def test_suspect_peer_is_waited_for_no_longer(autojump_clock: Clock) -> None:
    wire, mesh = MemoryNetwork(0.001), Mesh()
    first, second, machine = mesh.node(), mesh.node(), wire.transport()
    async with (
        opened(first, transport=machine),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        first.net.artifacts.serve(Library())
        await until(lambda: first.came and second.came)
        async with second.net.artifacts.open(first.peer_id) as line:
            assert await line.get(FILE, 0, 1)
            wire.freeze(machine)
            before = trio.current_time()
            with pytest.raises(Unavailable):
                await line.get(FILE, 0, 1)
            assert trio.current_time() - before < 6


LIES: dict[str, list[Any]] = {
    "answers what nobody asked": [Lacking(), Lacking()],
    "bytes where": [Found(size=10), Data(chunk=memoryview(b"x" * 11))],
    "0 bytes": [Found(size=10), Data(chunk=memoryview(b""))],
    "Data": [Data(chunk=memoryview(b"x"))],
    "Found": [Found(size=10), Found(size=10)],
    "Lacking": [Found(size=10), Lacking()],
    "HeldFiles": [HeldFiles()],
    "malformed": [{"type": "found", "size": -1}],
}


@pytest.mark.parametrize("words", LIES)
async def test_nonsense_is_the_peers_fault(words: str, autojump_clock: Clock) -> None:
    async def lie(stream: Stream, member: Member) -> None:
        await stream.receive()
        for message in LIES[words]:
            await stream.send(encode(message))
        await trio.sleep(3600)

    async with pair(lie) as (first, second):

        async def ask() -> None:
            async with second.net.artifacts.open(first.peer_id) as line:
                await line.get(FILE, 0, 10)
                await trio.sleep(1)
                await line.get(FILE, 0, 10)

        with pytest.raises(RemoteError, match=words):
            await ask()
        assert second.events("bad_peer")


async def test_range_is_no_answer_to_what_is_held(autojump_clock: Clock) -> None:
    async def lie(stream: Stream, member: Member) -> None:
        await stream.hear(AskHeld)
        await stream.tell(Found(size=1))
        await trio.sleep(3600)

    async with pair(lie) as (first, second):
        with pytest.raises(RemoteError, match="another question"):
            async with second.net.artifacts.open(first.peer_id) as line:
                await line.held(PACKAGE)


async def test_slow_reader_holds_up_who_sends_and_little_is_read_ahead(
    autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    class Counted(Blob):
        async def read(self, offset: int, length: int) -> bytes:
            reads.append(offset)
            return await super().read(offset, length)

    library = Library()
    library._blob = Counted(bytes(64 << 20))
    async with (
        pair(library) as (first, second),
        second.net._protocols.open(first.peer_id, PROTOCOL) as stream,
    ):
        for start in range(0, 64 << 20, MAX_RANGE):
            await stream.tell(Get(sha256=FILE, offset=start, length=MAX_RANGE))
        await trio.sleep(3)
        # The muxer's window and buffers, and two reads beside.
        assert len(reads) * artifacts.READ <= (4 << 20) + (1 << 20) + 3 * artifacts.READ
