"""Events are the same however the bytes are cut, and bounded."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_openai_endpoint.sse import Events

from p2p_mesh.errors import RemoteError

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n"
    b": a comment\r\nevent: x\r\ndata: two\r\ndata:three\r\n\r\n"
    b"id: 4\rdata\rdata:  five\r\r"
    b"retry: 10\n\n\n"
    b"data: unfinished\n"
)
EVENTS = [b"one", b"two\nthree", b"\n five"]


def read(*chunks: bytes) -> list[bytes]:
    events = Events()
    return [event for chunk in chunks for event in events.feed(chunk)]


def test_events_are_read() -> None:
    assert read(STREAM) == EVENTS


@pytest.mark.parametrize("place", range(len(STREAM) + 1))
def test_cut_at_every_byte(place: int) -> None:
    assert read(STREAM[:place], STREAM[place:]) == EVENTS


def test_byte_by_byte() -> None:
    assert read(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == EVENTS


@given(st.binary(), st.lists(st.integers(0, 50)))
def test_any_bytes_are_cut_anywhere(raw: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [raw[start:stop] for start, stop in pairwise(places)]
    assert read(*parts) == read(raw)


@pytest.mark.parametrize("raw", [b"data: " + b"x" * 100, b"data: 123456\n" * 9, b"x" * 101])
def test_large_event_is_refused(raw: bytes) -> None:
    with pytest.raises(RemoteError, match="more than 64 bytes"):
        Events(64).feed(raw)


def test_comments_do_not_add_up() -> None:
    events = Events(64)
    assert events.feed(b": still here\n" * 100) == []
    assert events.feed(b"data: x\n\n" * 100) == [b"x"] * 100
