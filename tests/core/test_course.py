"""What counts as an answer."""

import struct
from typing import Any

import pytest

from p2p_mesh.core.course import ENDLESS, SPARE_TOKENS, Course, answers
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    Delta,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    Query,
    Reply,
    RerankQuery,
    Resume,
    Scores,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenLogprob,
    Tokens,
    Usage,
    Vectors,
)
from p2p_mesh.errors import RemoteError

R = RequestId("r")
M = ModelId("m")
END = Usage(prompt_tokens=1, completion_tokens=1)
PAIR = {"choices": 2}
SHORT = {"max_tokens": 4}


def course(deltas: list[Delta], *, context: int = 0, **more: Any) -> None:
    request = InferenceRequest(id=R, model=M, prompt=TextPrompt(text="x"), **more)
    steps = Course(request, context)
    for delta in deltas:
        is_expected = steps.expects(delta)
        try:
            steps.check(delta)
        except RemoteError:
            assert not is_expected
            raise


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"echo": True, "max_tokens": 1}])
@pytest.mark.parametrize(("context", "most"), [(100, 100), (0, ENDLESS)])
def test_answer_without_a_limit_ends_with_the_context(
    more: dict[str, Any], context: int, most: int
) -> None:
    most = 2 * most + SPARE_TOKENS
    many = Delta(tokens=(1,) * 64)
    course([many] * (most // 64), context=context, **more)
    with pytest.raises(RemoteError, match="far more"):
        course([many] * (most // 64 + 1), context=context, **more)


LOGGED = Delta(logprobs=(TokenLogprob(token=1, logprob=-1.0, top=((1, b"", -1.0),)),))


@pytest.mark.parametrize(
    ("asked", "deltas"),
    [
        ({}, [Delta(text="a"), Delta(finish="stop", usage=END)]),
        ({}, [Delta(text="a", finish="stop"), Delta(usage=END)]),
        (PAIR, [Delta(finish="stop"), Delta(choice=1), Delta(choice=1, finish="stop", usage=END)]),
        (PAIR | {"resume": (Resume(finished=True),)}, [Delta(choice=1, finish="stop", usage=END)]),
        ({"resume": (Resume(finished=True),)}, [Delta(usage=END)]),
        (SHORT, [Delta(tokens=(1,))] * 264),
        (SHORT | {"echo": True}, [Delta(text="a")] * 1000),
        ({"logprobs": 1}, [LOGGED]),
    ],
)
def test_answer_within_its_bounds(asked: dict[str, Any], deltas: list[Delta]) -> None:
    course(deltas, **asked)


@pytest.mark.parametrize(
    ("asked", "deltas", "why"),
    [
        ({}, [Delta(choice=1)], "choice that was not asked for"),
        (PAIR, [Delta(finish="stop"), Delta(text="more")], "had ended"),
        (PAIR, [Delta(finish="stop"), Delta()], "had ended"),
        ({"resume": (Resume(finished=True),)}, [Delta(text="a")], "had ended"),
        (PAIR, [Delta(finish="stop", usage=END)], "before its choices"),
        ({}, [Delta(text="a", usage=END)], "before its choices"),
        (SHORT, [Delta(tokens=(1,))] * 265, "far more tokens"),
        (SHORT, [Delta(text="a")] * 265, "far more tokens"),
        ({}, [LOGGED], "log-probabilities"),
        ({"logprobs": 0}, [LOGGED], "log-probabilities"),
    ],
)
def test_answer_beyond_its_bounds(asked: dict[str, Any], deltas: list[Delta], why: str) -> None:
    with pytest.raises(RemoteError, match=why):
        course(deltas, **asked)


def test_more_of_a_choice_is_expected_and_its_end_is_looked_at() -> None:
    steps = Course(InferenceRequest(id=R, model=M, prompt=TextPrompt(text="x")))
    assert steps.expects(Delta(tokens=(1,), text="a"))
    assert not steps.expects(Delta(finish="stop"))
    assert not steps.expects(Delta(choice=1))


EMBED = EmbedQuery(model=M, inputs=("a", "b"))
RERANK = RerankQuery(model=M, query="x", documents=("a", "b"))
TOKENIZE = TokenizeQuery(model=M, prompt=TextPrompt(text="x"))
PIECES = TokenizeQuery(model=M, prompt=TextPrompt(text="x"), with_pieces=True)
DETOKENIZE = DetokenizeQuery(model=M, tokens=(1,))
UNIT = struct.pack("<2f", 0.6, 0.8)
NAN = struct.pack("<2f", 0.6, float("nan"))


def vectors(*each: bytes) -> Vectors:
    return Vectors(vectors=each, prompt_tokens=1)


def scores(*each: float) -> Scores:
    return Scores(scores=each, prompt_tokens=1)


@pytest.mark.parametrize(
    ("query", "reply"),
    [
        (EMBED, vectors(UNIT, UNIT)),
        (RERANK, scores(1.0, -2.0)),
        (TOKENIZE, Tokens(tokens=(1,))),
        (TOKENIZE, Tokens(tokens=())),
        (PIECES, Tokens(tokens=(1,), pieces=(b"x",))),
        (DETOKENIZE, Text(text="x")),
    ],
)
def test_reply_that_answers(query: Query, reply: Reply) -> None:
    assert answers(reply, query)


@pytest.mark.parametrize(
    ("query", "reply"),
    [
        (EMBED, scores(1.0, 2.0)),
        (EMBED, vectors(UNIT)),
        (EMBED, vectors(UNIT, UNIT + UNIT)),
        (EMBED, vectors(UNIT[:7], UNIT[:7])),
        (EMBED, vectors(b"", b"")),
        (EMBED, vectors(UNIT, NAN)),
        (RERANK, scores(1.0)),
        (RERANK, scores(1.0, float("nan"))),
        (TOKENIZE, Tokens(tokens=(1,), pieces=(b"x", b"y"))),
        (PIECES, Tokens(tokens=(1,))),
        (DETOKENIZE, Tokens(tokens=(1,))),
    ],
)
def test_reply_that_does_not_answer(query: Query, reply: Reply) -> None:
    assert not answers(reply, query)
