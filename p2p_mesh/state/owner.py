"""The owner's key, kept on the machine from which an owner orders its nodes about.

DIR/owner.key   32 bytes (0600); its public half is what other nodes are told to accept
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.errors import LocalError, SettingsError
from p2p_mesh.state.directory import read, write

_SIZE = 32


def owner_key(directory: Path) -> Ed25519PrivateKey:
    """The owner's key. Raises LocalError where there is none yet, and SettingsError."""
    path = directory / "owner.key"
    seed = read(path)
    if seed is None:
        raise LocalError(
            f"there is no owner's key in {directory}: `meshnode owner key` makes one, and says "
            "how a node accepts it"
        )
    if len(seed) != _SIZE:
        raise SettingsError(f"{path} is damaged: restore it from a backup, or remove it")
    return Ed25519PrivateKey.from_private_bytes(seed)


def make_owner_key(directory: Path) -> Ed25519PrivateKey:
    """The owner's key, made if there is none. Raises SettingsError."""
    path = directory / "owner.key"
    aside = directory / f".owner.key.{secrets.token_hex(8)}"
    try:
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write(aside, secrets.token_bytes(_SIZE))
            # Of two processes that do this at once one wins, and both read the same key.
            with suppress(FileExistsError):
                path.hardlink_to(aside)
            aside.unlink()
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error
    return owner_key(directory)
