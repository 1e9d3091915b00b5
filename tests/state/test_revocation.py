"""The newest revocation, on disk."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh import state
from p2p_mesh.core.names import MeshId
from p2p_mesh.core.signature import sign
from p2p_mesh.errors import SettingsError

MESH = MeshId("0" * 32)


def test_revocation_is_kept(tmp_path: Path) -> None:
    assert state.revocation(tmp_path, MESH) is None
    signed = sign("revocation", b"x", Ed25519PrivateKey.generate())
    state.keep_revocation(tmp_path, MESH, signed)
    assert state.revocation(tmp_path, MESH) == signed


def test_damaged_revocation_is_named(tmp_path: Path) -> None:
    (tmp_path / "meshes" / MESH).mkdir(parents=True)
    (tmp_path / "meshes" / MESH / "revocation").write_bytes(b"\xc1")
    with pytest.raises(SettingsError, match="revocation is damaged"):
        state.revocation(tmp_path, MESH)
