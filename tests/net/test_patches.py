"""The patches that are process-wide; what they are for is tested in test_host.py too."""

from __future__ import annotations

import libp2p.stream_muxer.muxer_multistream as muxer_multistream
from libp2p.transport.tcp import tcp

from p2p_mesh.net import patches
from p2p_mesh.net.muxer import Muxer


def test_connections_are_muxed_by_our_muxer() -> None:
    patches.apply()
    assert muxer_multistream.Yamux is Muxer


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
