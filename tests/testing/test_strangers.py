"""The peers that keep to no rule do hear what they are told."""

from __future__ import annotations

import trio

from p2p_mesh.testing.members import Mesh, opened
from p2p_mesh.testing.network import MemoryNetwork
from p2p_mesh.testing.strangers import stranger


async def test_stranger_keeps_what_it_hears(autojump_clock: trio.testing.MockClock) -> None:
    wire = MemoryNetwork()
    async with (
        opened(Mesh().node(), transport=wire.transport()) as node,
        stranger(wire.transport()) as guest,
    ):
        await guest.dial(node)
        answer = await guest.send(node, "/ipfs/ping/1.0.0", bytes(range(32)))
        assert answer == bytes(range(32))
        # Decrypted: the names of the protocols that were negotiated.
        assert b"/yamux/1.0.0" in guest.heard
        assert b"/ipfs/ping/1.0.0" in guest.heard
