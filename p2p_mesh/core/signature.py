"""Signatures by the Ed25519 keys of meshes, invites and nodes, over a kind and exact bytes."""

from __future__ import annotations

from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from p2p_mesh.core.records import Record
from p2p_mesh.core.wire import ADMISSION_LIMIT
from p2p_mesh.errors import Refused

Key = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]


class Signed(Record, frozen=True, kw_only=True):
    """Bytes and a signature over `meshnode/<kind>/1`, a zero byte, and exactly those bytes.
    They travel as bytes and are never encoded again.
    """

    payload: Annotated[bytes, Meta(max_length=ADMISSION_LIMIT)]
    signature: Signature


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def sign(kind: str, payload: bytes, key: Ed25519PrivateKey) -> Signed:
    return Signed(payload=payload, signature=key.sign(_covered(kind, payload)))


def verify(kind: str, signed: Signed, key: bytes) -> bytes:
    """The payload, if `key` signed it. Raises Refused."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            signed.signature, _covered(kind, signed.payload)
        )
    except (InvalidSignature, ValueError) as error:
        raise Refused(
            f"the signature of the {kind} is not from the key it names", reason="forged"
        ) from error
    return signed.payload


def _covered(kind: str, payload: bytes) -> bytes:
    return f"meshnode/{kind}/1".encode() + b"\0" + payload
