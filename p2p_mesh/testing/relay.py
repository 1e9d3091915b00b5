"""A longer cable: a TCP relay on loopback that holds back what passes, in each direction.

Where the kernel delays nothing, nodes that reach each other through a relay are as far apart:

    async with open_relay(port, delay=0.025) as far:      # a round trip of 50 ms
        stream = await trio.open_tcp_stream("127.0.0.1", far)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio
from trio.abc import HalfCloseableStream as Stream

CHUNK = 64 << 10
IN_FLIGHT = 256
"""Chunks that are on their way in one direction; the sender of more waits, as on a real cable."""


@asynccontextmanager
async def open_relay(port: int, *, delay: float, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a relay to that port, `delay` seconds away. All connections break in the end."""
    async with trio.open_nursery() as nursery:
        serve = partial(_serve, host=host, port=port, delay=delay)
        listening = partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(listening)
        yield int(listener.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def _serve(near: trio.SocketStream, *, host: str, port: int, delay: float) -> None:
    await trio.sleep(delay)  # the first packet of the handshake
    with suppress(OSError):
        async with await trio.open_tcp_stream(host, port) as far:
            await join(near, far, delay)


async def join(near: Stream, far: Stream, delay: float) -> None:
    """Carries bytes, and each end of them, both ways until both have ended or one broke."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, near, far, delay)
            nursery.start_soon(carry, far, near, delay)
    except* trio.BrokenResourceError:
        pass


async def carry(source: Stream, sink: Stream, delay: float) -> None:
    """Carries bytes one way: in order, each `delay` after it came."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](IN_FLIGHT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_deliver, receive, sink)
        async with send:
            while data := await source.receive_some(CHUNK):
                await send.send((trio.current_time() + delay, bytes(data)))
            await send.send((trio.current_time() + delay, b""))


async def _deliver(receive: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: Stream) -> None:
    async for due, data in receive:
        await trio.sleep_until(due)
        if data:
            await sink.send_all(data)
        else:
            await sink.send_eof()
