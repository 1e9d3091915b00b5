"""No bytes of a server raise anything but RemoteError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_openai_endpoint.messages import Chunk, Embeddings, Listing, loosely, read

from p2p_mesh.errors import RemoteError


def test_what_is_null_or_missing_is_nothing() -> None:
    chunk = read(b'{"choices": [{"delta": {"content": null}, "logprobs": null}], "x": 1}', Chunk)
    assert chunk.choices is not None
    assert chunk.choices[0].index == 0
    assert read(b"{}", Chunk) == Chunk()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"choices": 5}',
        b'{"choices": [{"index": -1}]}',
        b'{"choices": [{"index": 128}]}',
        b'{"usage": {"prompt_tokens": 1e300}}',
        b'{"error": ' + b"[" * 100_000,
        b'{"other": ' + b"[" * 1_000_000,
        b'{"choices": [{"logprobs": {"content": [' + b'{"token":"a","top_logprobs":[' * 10_000,
    ],
)
def test_nonsense_is_the_servers_fault(raw: bytes) -> None:
    with pytest.raises(RemoteError, match="is no Chunk"):
        read(raw, Chunk)


@given(st.binary())
def test_any_bytes(raw: bytes) -> None:
    loosely(raw)
    for kind in (Chunk, Listing, Embeddings):
        with pytest.raises(RemoteError):
            read(b"!" + raw, kind)


def test_anything_else_is_read_loosely() -> None:
    assert loosely(b'{"a": [1]}') == {"a": [1]}
    assert loosely(b"[" * 1_000_000) is None
