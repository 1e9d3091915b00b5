"""Members that a node was connected to: where it looks first when it starts again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from p2p_mesh.core.names import MeshId, PeerId
from p2p_mesh.core.records import ShortText
from p2p_mesh.state.directory import folder, read, write

MAX_PEERS = 64
"""The newest are kept."""

MAX_ADDRESSES = 8


class _Known(Struct, frozen=True, array_like=True):
    peer: ShortText
    addresses: Annotated[tuple[ShortText, ...], Meta(max_length=MAX_ADDRESSES)]


_File = Annotated[tuple[_Known, ...], Meta(max_length=MAX_PEERS)]


def remember_peers(
    directory: Path, mesh: MeshId, peers: Iterable[tuple[PeerId, Sequence[str]]]
) -> None:
    """Puts members before those that were kept so far. Raises SettingsError."""
    path = folder(directory, mesh) / "peers"
    before = _read(path)
    known = {peer: _Known(peer, tuple(addresses[:MAX_ADDRESSES])) for peer, addresses in peers}
    for one in before:
        known.setdefault(PeerId(one.peer), one)
    after = tuple(islice((one for one in known.values() if one.addresses), MAX_PEERS))
    if after != before:
        write(path, msgspec.msgpack.encode(after))


def known_peers(directory: Path, mesh: MeshId) -> tuple[str, ...]:
    """Multiaddrs with peer id, of the newest first."""
    known = _read(directory / "meshes" / mesh / "peers")
    return tuple(f"{address}/p2p/{one.peer}" for one in known for address in one.addresses)


def _read(path: Path) -> tuple[_Known, ...]:
    """None where the file is damaged: it is a convenience, and soon written again."""
    try:
        return msgspec.msgpack.decode(read(path) or b"\x90", type=_File)
    except msgspec.MsgspecError:
        return ()
