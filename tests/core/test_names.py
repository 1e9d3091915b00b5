"""Peer ids, mesh ids."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.names import PeerId, mesh_id, peer_id, public_key


def test_peer_id_is_libp2ps() -> None:
    # What libp2p.peer.id.ID.from_pubkey gives for the same key.
    expected = "12D3KooW9pP4Seg3kZYhySpuVjn1RPdQBsUFZKiFxGMGQN5MeL6A"
    assert peer_id(bytes(range(32))) == expected


@given(st.binary(min_size=32, max_size=32))
def test_public_key_comes_back(key: bytes) -> None:
    assert public_key(peer_id(key)) == key


@pytest.mark.parametrize("size", [0, 31, 33])
def test_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id(bytes(size))


@pytest.mark.parametrize(
    "text", ["", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "1" * 65]
)
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no (base58 )?peer id"):
        public_key(PeerId(text))


@given(st.text(max_size=80))
def test_any_text_is_a_peer_id_or_a_value_error(text: str) -> None:
    try:
        key = public_key(PeerId(text))
    except ValueError:
        return
    assert peer_id(key) == text


def test_mesh_id_is_half_a_digest() -> None:
    key = bytes(32)
    assert mesh_id(key) == hashlib.sha256(b"meshnode/mesh/1\0" + key).hexdigest()[:32]
