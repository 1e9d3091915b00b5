from math import inf

import pytest

from p2p_mesh.core.records import TokenLogprob
from p2p_mesh.front.logprobs import TextForm, chat_form, spelled

HI = TokenLogprob(token=1, piece=b"hi", logprob=-0.5, top=((1, b"hi", -0.5), (2, b"ho", -1.0)))
HALF = TokenLogprob(token=3, piece=b"\xc3", logprob=-inf)
REST = TokenLogprob(token=4, piece=b"\xa9", logprob=-1.5)


def test_form_of_chat() -> None:
    assert chat_form([HI, HALF], 1) == {
        "content": [
            {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": [
                {"token": "hi", "logprob": -0.5, "bytes": [104, 105]}]},
            {"token": "\\xc3", "logprob": -9999.0, "bytes": [195], "top_logprobs": []},
        ],
        "refusal": None,
    }  # fmt: skip


def test_form_of_completions() -> None:
    assert TextForm(2).take([HI, HALF, REST, HI]) == {
        "tokens": ["hi", "bytes:\\xc3", "bytes:\\xa9", "hi"],
        "token_logprobs": [-0.5, -9999.0, -1.5, -0.5],
        "top_logprobs": [{"hi": -0.5, "ho": -1.0}, {}, {}, {"hi": -0.5, "ho": -1.0}],
        "text_offset": [0, 2, 2, 3],
    }


def test_offsets_go_on_from_one_delta_to_the_next() -> None:
    form = TextForm(0)
    parts = [form.take([one])["text_offset"] for one in (HI, HALF, REST, HI)]
    assert parts == [[0], [2], [2], [3]]


def test_first_token_of_a_prompt_has_none() -> None:
    found = TextForm(1).take([TokenLogprob(token=1, piece=b"a")])
    assert found["token_logprobs"] == [None]
    assert found["top_logprobs"] == [None]


def test_no_likeliest_tokens_where_none_are_wanted() -> None:
    assert TextForm(0).take([HI])["top_logprobs"] is None


def test_of_tokens_that_are_spelled_alike_the_likeliest_counts() -> None:
    top = ((1, b"a", -0.1), (2, b"a", -3.0))
    found = TextForm(2).take([TokenLogprob(token=1, piece=b"a", logprob=-0.1, top=top)])
    assert found["top_logprobs"] == [{"a": -0.1}]


@pytest.mark.parametrize(
    ("piece", "text"), [(b"", ""), (b"\xf0\x9f", "\\xf0\\x9f"), ("é".encode(), "é")]
)
def test_spelling(piece: bytes, text: str) -> None:
    assert spelled(piece) == text
