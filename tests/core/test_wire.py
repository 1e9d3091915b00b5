"""Frames and messages: whatever the bytes, RemoteError or nothing."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.admission import Hello, Proof
from p2p_mesh.core.inventory import Announced
from p2p_mesh.core.invite import Credential, Envelope
from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import DetokenizeQuery, EmbedQuery, ModelLoad, Text, Tokens
from p2p_mesh.core.wire import (
    Ask,
    Cancel,
    End,
    ErrorMessage,
    Found,
    Frames,
    Grew,
    Look,
    decode,
    encode,
    frame,
    framed,
    varint,
)
from p2p_mesh.errors import ContextExceeded, Overloaded, RemoteError, RequestError

MESSAGES = Ask | Grew | Look | Found | Cancel | End | ErrorMessage | Hello | Proof | Announced


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(1, 40))
def test_frames_come_back_however_they_are_cut(bodies: list[bytes], step: int) -> None:
    stream = b"".join(varint(len(body)) + body for body in bodies)
    frames = Frames(limit=300)
    found = []
    for start in range(0, len(stream), step):
        frames.feed(stream[start : start + step])
        found += list(frames)
    assert found == bodies
    assert frames.is_between


def test_half_a_frame_is_held() -> None:
    frames = Frames(limit=100)
    frames.feed(varint(10) + b"12345")
    assert list(frames) == []
    assert not frames.is_between


def test_frame_over_the_limit_is_refused_by_its_length() -> None:
    frames = Frames(limit=100)
    frames.feed(varint(101))
    with pytest.raises(RemoteError, match="101 bytes; the limit is 100"):
        list(frames)


def test_length_that_never_ends_is_refused() -> None:
    frames = Frames(limit=100)
    frames.feed(b"\xff" * 5)
    with pytest.raises(RemoteError, match="never ends"):
        list(frames)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_remote_error(data: bytes) -> None:
    for kind in (MESSAGES, Envelope, Credential):
        try:
            decode(data, kind)
        except RemoteError:
            continue


def test_deep_nesting_is_a_remote_error() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(RemoteError):
        decode(b"\x82\xa4type\xa3ask\xa7request" + deep, MESSAGES)


def test_error_message_gives_the_error_back() -> None:
    sent = ErrorMessage.of(Overloaded("full", retry_after=3.0))
    received: ErrorMessage = decode(encode(sent), MESSAGES)
    got = received.error()
    assert isinstance(got, Overloaded)
    assert (str(got), got.retry_after) == ("full", 3.0)


@pytest.mark.parametrize("seconds", [-1.0, 1e9, float("nan"), float("inf")])
def test_retry_after_is_a_time_that_one_can_wait(seconds: float) -> None:
    raw = msgspec.msgpack.encode(
        {"type": "error", "code": "x", "message": "", "retry_after": seconds}
    )
    with pytest.raises(RemoteError):
        decode(raw, MESSAGES)


def test_error_message_names_the_field() -> None:
    got = ErrorMessage.of(RequestError("too long", param="prompt")).error()
    assert isinstance(got, RequestError)
    assert got.param == "prompt"


def test_unknown_error_code_is_a_remote_error() -> None:
    assert type(ErrorMessage(code="new", message="?").error()) is RemoteError


def test_message_is_a_map_tagged_type() -> None:
    assert frame(End()) == b"\x0a\x81\xa4type\xa3end"


@pytest.mark.parametrize(
    "message",
    [
        Look(query=EmbedQuery(model=ModelId("m"), inputs=("a", (1, 2)))),
        Look(query=DetokenizeQuery(model=ModelId("m"), tokens=(1, 2))),
        Found(reply=Tokens(tokens=(1,), pieces=(b"\xff",))),
        Found(reply=Text(text="a")),
    ],
)
def test_query_and_reply_survive_the_wire(message: Look | Found) -> None:
    assert decode(encode(message), MESSAGES) == message


def test_query_of_no_kind_is_refused() -> None:
    raw = {"type": "look", "query": {"type": "divine", "model": "m"}}
    with pytest.raises(RemoteError):
        decode(msgspec.msgpack.encode(raw), MESSAGES)


def test_prompt_that_is_too_long_stays_that() -> None:
    sent = ErrorMessage.of(ContextExceeded("9 tokens, and 8 fit", param="messages"))
    assert type(sent.error()) is ContextExceeded


def test_error_carries_the_load() -> None:
    load = (ModelLoad(model=ModelId("m"), slots=2, active=1),)
    received: ErrorMessage = decode(encode(ErrorMessage.of(Overloaded("full"), load)), MESSAGES)
    assert received.load == load


def test_data_that_is_one_frame_need_not_be_fed() -> None:
    frames = Frames(limit=100)
    assert frames.only(framed(b"whole")) == b"whole"
    assert frames.only(framed(b"")) == b""
    for other in (b"", framed(b"one") + framed(b"two"), framed(b"half")[:-1]):
        assert frames.only(other) is None
    assert frames.is_between
    frames.feed(framed(b"half")[:-1])
    assert frames.only(framed(b"whole")) is None
    with pytest.raises(RemoteError, match="the limit is"):
        Frames(limit=3).only(framed(b"long"))
