"""A mesh of one has nobody in it."""

import pytest

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PackageRef
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Limits, Mesh
from p2p_mesh.testing.mesh import NoMesh


async def test_nobody_is_there() -> None:
    mesh: Mesh = NoMesh()
    assert mesh.peers() == ()
    with pytest.raises(Unavailable):
        mesh.open_stream(PeerId("x"), "stage")
    with pytest.raises(Unavailable):
        mesh.me()
    with pytest.raises(Unavailable):
        await mesh.package(PackageRef(manifest=Digest("0" * 64)))
    assert mesh.round_trip(PeerId("x")) is None
    assert mesh.resources().memory_free
    assert mesh.limits() == Limits()
    mesh.say("stage_held", "nobody hears it")
    async with mesh.lease(1):
        pass
