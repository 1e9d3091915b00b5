"""The names by which nodes, meshes, models and requests are known, and how each is made."""

from __future__ import annotations

import hashlib
from typing import NewType

PeerId = NewType("PeerId", str)
"""A node: the libp2p peer id of its Ed25519 key, base58 (`12D3KooW...`)."""

MeshId = NewType("MeshId", str)
"""A mesh: 32 hexadecimal digits, from the mesh's public key."""

ModelId = NewType("ModelId", str)
"""A model as clients name it: its file's stem."""

Digest = NewType("Digest", str)
"""SHA-256 of a model file, 64 hexadecimal digits."""

RequestId = NewType("RequestId", str)

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# An identity multihash of 36 bytes that hold a protobuf {type: Ed25519, data: 32 bytes}
# (github.com/libp2p/specs, peer-ids/peer-ids.md).
_ED25519_PREFIX = bytes.fromhex("002408011220")


def peer_id(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key of 32 bytes."""
    if len(public_key) != 32:
        raise ValueError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    number = int.from_bytes(_ED25519_PREFIX + public_key, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _BASE58[rest] + digits
    return PeerId("1" + digits)  # the one leading zero byte of the prefix


def public_key(peer: PeerId) -> bytes:
    """The raw Ed25519 public key inside a peer id; ValueError if it holds none."""
    number = 0
    for digit in peer[:64]:
        place = _BASE58.find(digit)
        if place < 0:
            raise ValueError(f"{peer[:64]!r} is no base58 peer id")
        number = number * 58 + place
    raw = number.to_bytes(64, "big")[-38:]
    if len(peer) > 64 or raw[:6] != _ED25519_PREFIX or peer_id(raw[6:]) != peer:
        raise ValueError(f"{peer[:64]!r} is no peer id of an Ed25519 key")
    return raw[6:]


def mesh_id(mesh_key: bytes) -> MeshId:
    """The mesh id of a mesh's public key: half of its SHA-256, enough that none collide."""
    return MeshId(hashlib.sha256(b"meshnode/mesh/1\0" + mesh_key).hexdigest()[:32])
