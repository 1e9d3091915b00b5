"""The file of a node's key."""

import pytest

from p2p_mesh.core.identity import SIZE, pack, unpack


def test_seed_comes_back() -> None:
    assert unpack(pack(b"s" * 32)) == b"s" * 32
    assert len(pack(b"s" * 32)) == SIZE


@pytest.mark.parametrize("data", [b"", b"s" * SIZE, pack(b"s" * 32) + b"x"])
def test_what_is_no_key_is_none(data: bytes) -> None:
    assert unpack(data) is None
