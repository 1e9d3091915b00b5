"""What another node is told of a broken answer is what was delivered, whatever it was cut into."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    CallDelta,
    Delta,
    InferenceRequest,
    Resume,
    TextPrompt,
    TokenLogprob,
    Usage,
)
from p2p_mesh.core.resumption import Progress, are_exact

ASKED = InferenceRequest(
    id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="hello"), choices=2
)

deltas = st.builds(
    Delta,
    choice=st.integers(0, 1),
    tokens=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    text=st.text(max_size=4),
    reasoning=st.text(max_size=4),
    calls=st.lists(
        st.builds(CallDelta, index=st.integers(0, 2), arguments=st.text(max_size=3)), max_size=2
    ).map(tuple),
)


def come(*deltas: Delta, asked: InferenceRequest = ASKED) -> Progress:
    progress = Progress(asked)
    for delta in deltas:
        progress.take(delta)
    return progress


def test_nothing_delivered_is_the_request_itself() -> None:
    assert come().request() == ASKED
    assert come().is_resumable


@given(st.lists(deltas, max_size=12))
def test_tokens_and_characters_add_up(found: list[Delta]) -> None:
    for one in come(*found).request().resume:
        mine = [delta for delta in found if delta.choice == one.choice]
        assert one.tokens == tuple(token for delta in mine for token in delta.tokens)
        assert one.text == sum(len(delta.text) for delta in mine)
        assert one.reasoning == sum(len(delta.reasoning) for delta in mine)
        assert sum(one.calls) == sum(len(c.arguments) for delta in mine for c in delta.calls)


def test_a_call_is_delivered_as_far_as_its_arguments_are() -> None:
    grown = (
        Delta(tokens=(1,), calls=(CallDelta(name="f"),)),
        Delta(tokens=(2,), calls=(CallDelta(arguments='{"a'), CallDelta(index=1, name="g"))),
        Delta(tokens=(3,), calls=(CallDelta(index=1, arguments="{"),)),
    )
    assert come(*grown).request().resume == (Resume(tokens=(1, 2, 3), calls=(3, 1)),)


def test_a_choice_that_has_ended_is_not_begun_again() -> None:
    ended = come(Delta(choice=1, tokens=(7,), text="x", finish="stop"), Delta(tokens=(1,)))
    assert ended.request().resume == (
        Resume(tokens=(1,)),
        Resume(choice=1, tokens=(7,), text=1, finished=True),
    )


def test_usage_alone_is_no_progress_of_note() -> None:
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    assert come(Delta(usage=usage)).is_resumable


SCORE = TokenLogprob(token=1, logprob=-1.0)


@pytest.mark.parametrize(
    ("more", "delta", "is_resumable"),
    [
        ({}, Delta(text="so"), False),
        ({}, Delta(tokens=(1,), text="so"), True),
        ({}, Delta(), True),
        ({"echo": True}, Delta(text="hello"), True),
        ({"echo": True, "logprobs": 1}, Delta(logprobs=(SCORE,)), False),
        ({"echo": True, "logprobs": 1}, Delta(tokens=(1,), logprobs=(SCORE,)), True),
    ],
)
def test_what_does_not_follow_from_tokens_cannot_be_gone_on_with(
    more: dict[str, object], delta: Delta, is_resumable: bool
) -> None:
    asked = msgspec.structs.replace(ASKED, **more)
    assert come(delta, asked=asked).is_resumable is is_resumable


def test_only_equal_numerics_that_say_so_are_exact() -> None:
    assert are_exact("build 1 exact cpu", "build 1 exact cpu")
    assert not are_exact("build 1 exact cpu", "build 2 exact cpu")
    assert not are_exact("build 1 usual cpu", "build 1 usual cpu")
    assert not are_exact("", "")
