"""The node's own key: an Ed25519 seed on disk, from which libp2p and our signatures both derive."""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.crypto.ed25519 import create_new_key_pair

from p2p_mesh.core.identity import SIZE, pack, unpack
from p2p_mesh.core.names import PeerId, peer_id
from p2p_mesh.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Identity:
    """One key in the two shapes that are needed: ours and libp2p's."""

    seed: bytes = field(repr=False)

    @property
    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    @property
    def peer_id(self) -> PeerId:
        return peer_id(self.public_key)

    def key_pair(self) -> Any:
        """The same key as libp2p's KeyPair."""
        return create_new_key_pair(self.seed)


def load_identity(path: Path) -> Identity:
    """The identity in `path`, made there if there is none. Raises SettingsError."""
    try:
        _create(path)
        return Identity(_read(path))
    except OSError as error:
        raise SettingsError(f"cannot keep this node's key in {path}: {error.strerror}") from error


def _create(path: Path) -> None:
    """Writes a new key, aside and then linked: nobody ever sees half a file, and of two
    processes that do this at once, one wins and both read the same key.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pack(secrets.token_bytes(32)))
            file.flush()
            os.fsync(file.fileno())
        _place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _place(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        aside.rename(path)


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _keep_private(file.fileno(), path)
        data = file.read(SIZE + 1)
    if (seed := unpack(data)) is None:
        raise SettingsError(
            f"{path} is damaged or no key of a node: restore it from a backup, or remove it "
            "to become a new node (which needs a new invite)"
        )
    return seed


def _keep_private(handle: int, path: Path) -> None:
    """Takes a key back from other users of the machine; refuses one that is not ours."""
    state = os.fstat(handle)
    if state.st_uid != os.geteuid() and os.geteuid() != 0:
        raise SettingsError(f"{path} belongs to another user; this node needs a key of its own")
    if stat.S_IMODE(state.st_mode) & 0o077:
        os.fchmod(handle, 0o600)
