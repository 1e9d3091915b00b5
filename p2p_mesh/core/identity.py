"""What the file of a node's key holds: a line that says so, and the Ed25519 seed."""

from __future__ import annotations

# So that a damaged or foreign file is told from a key.
_MAGIC = b"meshnode identity 1\n"

SIZE = len(_MAGIC) + 32


def pack(seed: bytes) -> bytes:
    return _MAGIC + seed


def unpack(data: bytes) -> bytes | None:
    """The seed; None where the file is no key of a node."""
    if len(data) != SIZE or not data.startswith(_MAGIC):
        return None
    return data[len(_MAGIC) :]
