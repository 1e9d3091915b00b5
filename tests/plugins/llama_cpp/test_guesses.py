"""What is guessed for whom; that guesses change no answer is the affair of test_decoder.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.guesses import Guesses, judge
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompt
from meshnode_llama_cpp.scheduler import Pace
from meshnode_llama_cpp.sequence import Sequence, Task
from meshnode_llama_cpp.speculation import MOST

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, TokenPrompt

AGAIN = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3]
"""What comes next has come before."""


def sequence(model: Model, tokens: list[int], *, most: int = 100, slot: int = 0) -> Sequence:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TokenPrompt(tokens=(1,))
    )
    found = Sequence(Task(slot, request, Prompt(parts=(tokens,)), most=most), 0, model)
    found.slot = slot
    return found


@pytest.fixture
def pace() -> Pace:
    """Rows cost next to nothing: all guesses pay."""
    found = Pace()
    for writing in (1, 2):
        for rows in range(MOST + 1):
            found.observe(writing, 0, rows, 1.0 + rows / 10_000)
    return found


class Sevens:
    """A draft model that says seven."""

    seconds = 0.0

    def guess(self, wanted: Mapping[int, tuple[list[int], int]]) -> dict[int, list[int]]:
        return {slot: [7] * count for slot, (_, count) in wanted.items()}


def guesses(*, looks_up: bool = True, draft: Any = None, length: int = 512) -> Guesses:
    return Guesses(context_length=length, looks_up=looks_up, draft=cast("Draft | None", draft))


def made(by: Guesses, pace: Pace, *ones: Sequence, outputs: int = 100) -> Iterator[list[int]]:
    for one in ones:
        by.begin(one)
    by.make(ones, outputs, pace)
    return (one.guesses for one in ones)


def test_what_followed_before_is_guessed(model: Model, pace: Pace) -> None:
    assert list(made(guesses(), pace, sequence(model, AGAIN))) == [AGAIN[3 : 3 + MOST]]


def test_a_draft_guesses_where_nothing_came_before(model: Model, pace: Pace) -> None:
    new = sequence(model, [1, 2, 3, 4], slot=1)
    found = made(guesses(draft=Sevens()), pace, sequence(model, AGAIN), new)
    assert list(found) == [AGAIN[3 : 3 + MOST], [7] * MOST]
    assert list(made(guesses(), pace, sequence(model, [1, 2, 3, 4]))) == [[]]


def test_no_more_is_guessed_than_there_is_room_for(model: Model, pace: Pace) -> None:
    one = sequence(model, AGAIN)
    assert [len(some) for some in made(guesses(), pace, one, outputs=3)] == [3]
    assert [len(some) for some in made(guesses(length=len(AGAIN) + 3), pace, one)] == [2]
    assert [len(some) for some in made(guesses(), pace, sequence(model, AGAIN, most=2))] == [1]
    assert [len(some) for some in made(guesses(length=1), pace, one)] == [0]


def test_they_are_made_by_somebody(model: Model) -> None:
    assert guesses().are_made
    assert guesses(looks_up=False, draft=Sevens()).are_made
    assert not guesses(looks_up=False).are_made


def test_wrong_guesses_are_counted_and_lower_hope(model: Model, pace: Pace) -> None:
    one = sequence(model, AGAIN)
    for _ in range(50):
        judge(one, MOST, 0)
    assert (one.task.drafted, one.task.accepted) == (50 * MOST, 0)
    slow = Pace()
    for rows in range(MOST + 1):
        slow.observe(1, 0, rows, 1.0 + rows)
    assert list(made(guesses(), slow, one)) == [[]]
