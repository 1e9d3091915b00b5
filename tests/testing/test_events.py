"""Events are found however the bytes are cut."""

import pytest
import trio.testing

from p2p_mesh.testing.events import Events

RAW = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    b'd\r\ndata: {"a": 1}\n\n\r\nd\r\ndata: {"a": 2}\n\ndata: [DONE]\n\n\r\n0\r\n\r\n'
)


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_events_come_in_order(size: int) -> None:
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for start in range(0, len(RAW), size):
                await ours.send_all(RAW[start : start + size])
            await ours.aclose()

        nursery.start_soon(send)
        events = Events(theirs)
        assert await events.all() == [{"a": 1}, {"a": 2}]
        assert events.is_done
        assert events.head == b"HTTP/1.1 200 OK"


async def test_stream_that_breaks_off_is_not_done() -> None:
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    await ours.send_all(b'\ndata: {"a": 1}\n\n')
    await ours.aclose()
    events = Events(theirs)
    assert await events.all() == [{"a": 1}]
    assert not events.is_done
