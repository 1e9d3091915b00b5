"""A stream within one node is what one between two nodes is."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from meshnode_skippy import local
from meshnode_skippy.local import pipe

from p2p_mesh.core.wire import ErrorMessage, decode
from p2p_mesh.errors import Refused, Unavailable
from p2p_mesh.serve.backend import Stream


async def test_frames_come_in_order_both_ways() -> None:
    one, other = pipe()
    await one.send(b"a")
    assert one.send_nowait(b"b")
    await other.send(b"c")
    assert [await other.receive(), await other.receive(), await one.receive()] == [b"a", b"b", b"c"]


async def test_who_waits_is_woken(autojump_clock: trio.testing.MockClock) -> None:
    one, other = pipe()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def read() -> None:
            assert await other.receive() == b"a"

        await trio.testing.wait_all_tasks_blocked()
        await one.send(b"a")


async def test_who_listens_hears_at_once(autojump_clock: trio.testing.MockClock) -> None:
    one, other = pipe()
    heard: list[bytes] = []
    await one.send(b"early")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.listen, heard.append)
        await trio.testing.wait_all_tasks_blocked()
        one.send_nowait(b"late")
        assert heard == [b"early", b"late"]
        nursery.cancel_scope.cancel()


async def test_the_end_comes_after_what_was_sent() -> None:
    one, other = pipe()
    await one.send(b"a")
    one.close()
    assert await other.receive() == b"a"
    with pytest.raises(Unavailable, match="closed"):
        await other.receive()
    with pytest.raises(Unavailable):
        await other.send(b"b")
    with pytest.raises(Unavailable):
        await one.receive()


async def test_an_end_has_its_reason() -> None:
    one, other = pipe()
    one.close(Refused("not you"))
    with pytest.raises(Refused, match="not you"):
        await other.listen(lambda frame: None)


async def test_more_than_can_wait_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOST_FRAMES", 1)
    one, _ = pipe()
    await one.send(b"a")
    with pytest.raises(Unavailable, match="nobody takes"):
        await one.send(b"b")


async def test_what_a_listener_raises_is_raised_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def refuse(frame: bytes) -> None:
        raise Refused("not this")

    one, other = pipe()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def listen() -> None:
            with pytest.raises(Refused, match="not this"):
                await other.listen(refuse)

        await trio.testing.wait_all_tasks_blocked()
        one.send_nowait(b"a")


async def test_a_stream_within_the_node_ends_as_one_between_nodes() -> None:
    async def refuse(stream: Stream) -> None:
        assert await stream.receive() == b"a"
        raise Refused("not you")

    async with local.within(refuse) as stream:
        await stream.send(b"a")
        answer: ErrorMessage = decode(await stream.receive(), ErrorMessage)
        assert answer.message == "not you"
        with pytest.raises(Unavailable):
            await stream.receive()
