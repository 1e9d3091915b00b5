"""The newest revocation of a mesh, kept so that who is out stays out after a restart."""

from __future__ import annotations

from pathlib import Path

from p2p_mesh.core.names import MeshId
from p2p_mesh.core.signature import Signed
from p2p_mesh.core.wire import decode, encode
from p2p_mesh.errors import RemoteError, SettingsError
from p2p_mesh.state.directory import folder, read, write


def keep_revocation(directory: Path, mesh: MeshId, signed: Signed) -> None:
    """Raises SettingsError."""
    write(folder(directory, mesh) / "revocation", encode(signed))


def revocation(directory: Path, mesh: MeshId) -> Signed | None:
    """What is kept, if something is; the mesh's signature is for its reader to check."""
    path = directory / "meshes" / mesh / "revocation"
    data = read(path)
    try:
        return None if data is None else decode(data, Signed)
    except RemoteError as error:
        raise SettingsError(
            f"{path} is damaged; remove it, and this node learns it again from the others"
        ) from error
