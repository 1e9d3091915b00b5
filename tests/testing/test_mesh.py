"""A mesh of one has nobody in it."""

import pytest

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.errors import Unavailable
from p2p_mesh.serve.backend import Mesh
from p2p_mesh.testing.mesh import NoMesh


async def test_nobody_is_there() -> None:
    mesh: Mesh = NoMesh()
    assert mesh.peers() == ()
    with pytest.raises(Unavailable):
        mesh.open_stream(PeerId("x"), "stage")
    with pytest.raises(Unavailable):
        await mesh.fetch(Digest("0"))
    async with mesh.lease(1):
        pass
