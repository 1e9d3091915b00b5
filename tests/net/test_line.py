"""The stream of pings to one peer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from p2p_mesh.core.health import Down, Ping, Pong
from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import RemoteError, Unavailable
from p2p_mesh.net.health import PROTOCOL
from p2p_mesh.net.line import DEADLINE, Line, deadline
from p2p_mesh.net.protocols import Stream
from p2p_mesh.testing.members import Mesh, Node, opened, until
from p2p_mesh.testing.network import MemoryNetwork

Clock = trio.testing.MockClock


class Answerer:
    """A peer that sends these pongs for each ping, and keeps what it heard."""

    def __init__(self, *pongs: int) -> None:
        self.pongs = pongs
        self.heard: list[Ping | Down] = []

    async def serve(self, stream: Stream, member: Member) -> None:
        while True:
            message: Ping | Down = await stream.hear(Ping | Down)
            self.heard.append(message)
            if isinstance(message, Ping):
                for number in self.pongs:
                    await stream.tell(Pong(number=number))


@asynccontextmanager
async def lined(answerer: Answerer | None = None) -> AsyncIterator[Line]:
    """A line to a node, or to whoever answers in its place."""
    wire, mesh = MemoryNetwork(), Mesh()
    first, second = mesh.node(), mesh.node()
    async with (
        opened(first, transport=wire.transport()),
        opened(second, transport=wire.transport(), seeds=first.seeds()),
    ):
        await until(lambda: first.came and second.came)
        if answerer is not None:
            second.net._protocols.serve(PROTOCOL, answerer.serve)
        yield await line_to(first, second.peer_id)


async def line_to(node: Node, peer: PeerId) -> Line:
    return Line(await node.net._protocols.connect(peer, PROTOCOL))


async def hear(line: Line, times: int) -> None:
    for _ in range(times):
        await line.hear()


async def test_pong_says_how_long_it_took(autojump_clock: Clock) -> None:
    async with lined() as line:
        await line.ping()
        pong, took = await line.hear()
        assert pong.number == 1
        assert took == pytest.approx(0.02, abs=0.01)


async def test_hint_is_sent(autojump_clock: Clock) -> None:
    answerer = Answerer(1)
    async with lined(answerer) as line:
        await line.hint(PeerId("x"))
        await until(lambda: answerer.heard)
        assert answerer.heard == [Down(peer=PeerId("x"))]


@pytest.mark.parametrize("pongs", [(2,), (1, 1)])
async def test_pong_for_no_ping_is_a_fault(pongs: tuple[int, ...], autojump_clock: Clock) -> None:
    async with lined(Answerer(*pongs)) as line:
        await line.ping()
        with pytest.raises(RemoteError, match="nobody sent"):
            await hear(line, len(pongs))


async def test_line_was_good_once_it_has_lasted(autojump_clock: Clock) -> None:
    async with lined() as line:
        await line.ping()
        await line.hear()
        assert not line.was_good()
        await trio.sleep(1.1)
        assert line.was_good()


async def test_line_that_takes_nothing_is_cut(autojump_clock: Clock) -> None:
    async with lined() as line:
        await line.reset()
        with pytest.raises(Unavailable):
            await line.ping()
        assert line.reading.cancel_called


async def test_deadline_names_the_peer(autojump_clock: Clock) -> None:
    start = trio.current_time()
    with pytest.raises(Unavailable, match="bob took nothing"), deadline(PeerId("bob")):
        await trio.sleep_forever()
    assert trio.current_time() - start == DEADLINE
