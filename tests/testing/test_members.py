"""The nodes that the tests of net/ are made of."""

from __future__ import annotations

import pytest
import trio

from p2p_mesh.core.invite import check
from p2p_mesh.testing.members import Mesh, echo, request, until


def test_mesh_gives_memberships() -> None:
    mesh = Mesh()
    member, client = mesh.node(), mesh.node(role="client", until=2000)
    assert check(member.credential, mesh.public, 1000).role == "member"
    assert check(client.credential, mesh.public, 1000).until == 2000


async def test_echo_ends_with_usage() -> None:
    deltas = [delta async for delta in echo(request("ab"))]
    assert [delta.text for delta in deltas] == ["a", "b", ""]
    assert deltas[-1].usage is not None


async def test_waiting_ends(autojump_clock: trio.testing.MockClock) -> None:
    await until(lambda: trio.current_time() > 1)
    with pytest.raises(trio.TooSlowError):
        await until(lambda: False, seconds=1)
