"""Signatures cover the kind and the bytes."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2p_mesh.core.signature import public_bytes, sign, verify
from p2p_mesh.errors import Refused

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)


def test_signature_gives_the_payload_back() -> None:
    assert verify("note", sign("note", b"payload", KEY), public_bytes(KEY)) == b"payload"


@pytest.mark.parametrize(("kind", "key"), [("other", public_bytes(KEY)), ("note", b"x" * 32)])
def test_other_kind_or_key_is_forged(kind: str, key: bytes) -> None:
    with pytest.raises(Refused, match=f"signature of the {kind}") as caught:
        verify(kind, sign("note", b"payload", KEY), key)
    assert caught.value.reason == "forged"
