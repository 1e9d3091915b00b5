"""What this machine has of a package that is published on a hub: at first its manifest, the list of
its pieces, and its metadata. The rest is fetched when it is needed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec

from p2p_mesh.core.manifest import read_manifest, read_pieces
from p2p_mesh.core.package import MANIFEST, MAX_MANIFEST, MAX_PIECES, PIECES
from p2p_mesh.core.reference import HubName
from p2p_mesh.errors import ModelError
from p2p_mesh.serve.hub import Hub
from p2p_mesh.serve.package import folder as folders
from p2p_mesh.serve.package.folder import ORIGIN, Origin


def fetch(name: HubName, cache: Path, hub: Hub) -> Path:
    """The folder of a package in the cache, whose metadata are there. Blocks, for megabytes. Raises
    ModelError, Unavailable.
    """
    fixed = hub.look_up(name)
    manifest = folders.read_text(hub.get(fixed, MANIFEST), MAX_MANIFEST)
    digest = folders.digest(manifest)
    try:
        read = read_manifest(manifest)
        pieces = _pieces(fixed, hub)
        if pieces:
            read_pieces(pieces, read, digest)
    except ModelError as error:
        raise ModelError(f"{fixed} cannot be used: {error}") from error
    metadata = hub.get(fixed, read.metadata.path).resolve()
    folder = cache / digest
    origin = msgspec.json.encode(Origin(hub=str(fixed)))
    try:
        folders.keep(folder, {PIECES: pieces, ORIGIN: origin, MANIFEST: manifest})
        folders.link(folder / read.metadata.path, metadata)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def _pieces(name: HubName, hub: Hub) -> bytes:
    """Empty where the package was published without them."""
    with suppress(ModelError):
        return folders.read_text(hub.get(name, PIECES), MAX_PIECES)
    return b""
