"""The patches that are on classes of libp2p; what they are for is tested in test_host.py."""

from __future__ import annotations

import struct
from typing import Any

from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream
from libp2p.transport.tcp import tcp

from p2p_mesh.net import patches


class Wire:
    """A secured connection that keeps what is written."""

    is_initiator = True

    def __init__(self) -> None:
        self.written: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self.written.append(data)


async def test_credit_is_returned_in_batches() -> None:
    patches.apply()
    wire = Wire()
    stream: Any = YamuxStream(1, Yamux(wire, None), True)
    for _ in range(63):
        await stream._auto_tune_and_send_window_update(bytes_read=1024)
    assert wire.written == []
    await stream._auto_tune_and_send_window_update(bytes_read=1024)
    (update,) = wire.written
    # What was read, and what the window grew by.
    assert struct.unpack(">BBHLL", update)[4] == (64 << 10) + (4 << 20) - (256 << 10)


async def test_port_is_not_shared() -> None:
    patches.apply()
    first = await tcp._open_reuseport_listeners("127.0.0.1", 0)
    port = first[0].socket.getsockname()[1]
    try:
        await tcp._open_reuseport_listeners("127.0.0.1", port)
        shared = True
    except tcp.OpenConnectionError:
        shared = False
    await first[0].aclose()
    assert not shared
