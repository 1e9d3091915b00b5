from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp import frames

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    Delta,
    DetokenizeQuery,
    InferenceRequest,
    TextPrompt,
    Tokens,
    Usage,
)

REPORTS: list[frames.Report] = [
    frames.Progress(0.5),
    frames.Ready("llama.cpp", "cpu", ("generate", "vision"), ("a note",)),
    frames.Replied(3, Tokens(tokens=(1, 2))),
    frames.Failed("no"),
    frames.Answer(1, Delta(tokens=(3,), text="é", finish="stop",
                           usage=Usage(prompt_tokens=1, completion_tokens=1))),
    frames.Rejected(2, "invalid_value", "no", "prompt"),
]  # fmt: skip
STREAM = b"".join(map(frames.encode, REPORTS))


@given(st.lists(st.integers(0, len(STREAM))))
def test_records_arrive_however_they_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    reader = frames.reports()
    found = [report for start, end in pairwise(edges) for report in reader.feed(STREAM[start:end])]
    assert found == REPORTS


def test_commands_come_back() -> None:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("tiny"), prompt=TextPrompt(text="Hello")
    )
    sent: list[frames.Command] = [
        frames.Open("tiny", "/tiny.gguf", 512, 4, 2, None, kv_type="q8_0", deterministic=True),
        frames.Look(1, DetokenizeQuery(model=ModelId("tiny"), tokens=(1, 2))),
        frames.Ask(0, request),
        frames.Cancel(0),
    ]
    assert list(frames.commands().feed(b"".join(map(frames.encode, sent)))) == sent


def test_an_oversized_length_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        list(frames.reports().feed(b"\xff\xff\xff\xff"))


@given(st.binary(min_size=1, max_size=64))
def test_bytes_that_are_no_record_are_a_value_error(body: bytes) -> None:
    frame = len(body).to_bytes(4, "little") + body
    try:
        list(frames.reports().feed(frame))
    except ValueError:
        return


def test_a_record_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME", 10)
    with pytest.raises(ValueError, match="more than a frame"):
        frames.encode(frames.Failed("a long reason"))


def test_broken_unicode_is_not_written() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        frames.encode(frames.Failed("\ud800"))
