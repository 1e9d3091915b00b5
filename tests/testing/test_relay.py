"""The longer cable: bytes come late, in order, and ends come as they were."""

from __future__ import annotations

from functools import partial

import trio
import trio.testing

from p2p_mesh.testing.relay import join, open_relay

Clock = trio.testing.MockClock


async def echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk.upper())


async def test_bytes_come_late_and_in_order(autojump_clock: Clock) -> None:
    client, near = trio.testing.memory_stream_pair()
    far, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, near, far, 0.5)
        await client.send_all(b"one")
        await trio.sleep(0.2)
        await client.send_all(b"two")
        assert await server.receive_some(3) == b"one"
        assert trio.current_time() == 0.5
        assert await server.receive_some(3) == b"two"
        assert trio.current_time() == 0.7
        nursery.cancel_scope.cancel()


async def test_each_direction_ends_by_itself(autojump_clock: Clock) -> None:
    client, near = trio.testing.memory_stream_pair()
    far, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, near, far, 0.5)
        await client.send_eof()
        assert await server.receive_some(9) == b""
        await server.send_all(b"still here")
        assert await client.receive_some(99) == b"still here"
        assert trio.current_time() == 1.0
        await server.send_eof()
        assert await client.receive_some(9) == b""


async def test_many_bytes_in_flight_wait_for_none(autojump_clock: Clock) -> None:
    client, near = trio.testing.memory_stream_pair()
    far, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, near, far, 1.0)
        for _ in range(100):
            await client.send_all(b"x")
        for _ in range(100):
            await server.receive_some(1)
        assert trio.current_time() == 1.0
        nursery.cancel_scope.cancel()


async def test_broken_end_breaks_the_other(autojump_clock: Clock) -> None:
    client, near = trio.testing.memory_stream_pair()
    far, server = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(join, near, far, 0.5)
        await server.aclose()
        with trio.fail_after(10):
            await client.send_all(b"x")


async def test_sockets_are_joined() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with (
            open_relay(port, delay=0.0) as far,
            await trio.open_tcp_stream("127.0.0.1", far) as stream,
        ):
            await stream.send_all(b"hello")
            assert await stream.receive_some(5) == b"HELLO"
        nursery.cancel_scope.cancel()


async def test_nobody_there_is_a_connection_that_closes() -> None:
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()
    async with (
        open_relay(port, delay=0.0) as far,
        await trio.open_tcp_stream("127.0.0.1", far) as stream,
    ):
        assert await stream.receive_some(5) == b""
