from __future__ import annotations

from dataclasses import dataclass

from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prefixes import Rules
from meshnode_llama_cpp.prompt import Prompt
from meshnode_llama_cpp.scheduler import Turn
from meshnode_llama_cpp.sequence import Sequence, Task, keys_of

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import InferenceRequest, Resume, TextPrompt, TokenPrompt

TRIMS, WHOLE = Rules(), Rules(trims=False)


@dataclass(frozen=True)
class Image:
    digest: bytes = b"0123456789abcdef"
    rows: int = 9
    positions: int = 3


def sequence(
    model: Model, *parts: object, echo: bool = False, resume: Resume | None = None
) -> Sequence:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TokenPrompt(tokens=(1,)), echo=echo,
        resume=(resume,) if resume else (),
    )  # fmt: skip
    return Sequence(Task(0, request, Prompt(parts=parts), most=10), 0, model)


def test_an_image_takes_its_positions_with_keys_of_its_own() -> None:
    keys, media = keys_of([[1, 2], Image(), [3]])
    assert keys[:2] + keys[5:] == [1, 2, 3]
    assert len(set(keys[2:5])) == 1
    assert keys[2] < 0
    assert list(media) == [2]
    other, _ = keys_of([[1, 2], Image(digest=b"another one here"), [3]])
    assert other[2] != keys[2]


def test_a_prompt_is_read_up_to_an_image_and_on_behind_it(model: Model) -> None:
    found = sequence(model, [1, 2], Image(), [3, 4])
    assert found.unread(TRIMS) == 2
    found.read = 2
    assert found.medium is not None
    found.read = 5
    assert found.medium is None
    assert found.unread(TRIMS) == 2
    found.read = 7
    assert found.is_writing


def test_a_state_is_saved_before_the_last_token(model: Model) -> None:
    found = sequence(model, [1, 2, 3, 4])
    assert found.unread(WHOLE) == 3
    assert found.unread(Rules(cells=3)) == 3
    assert found.unread(Rules(cells=4)) == 4
    found.read = 3
    assert found.unread(WHOLE) == 1


def test_only_the_last_row_of_a_prompt_is_answered(model: Model) -> None:
    found = sequence(model, [1, 2, 3, 4])
    assert found.next(3) == ([1, 2, 3], 0)
    found.read = 3
    assert found.next(1) == ([4], 1)


def test_guesses_follow_the_last_token(model: Model) -> None:
    found = sequence(model, [1, 2])
    found.read, found.guesses = 2, [7, 8, 9]
    found.keys.append(5)
    assert found.turn(TRIMS, outputs=4) == Turn(0, 2, 3, 2**31)
    assert found.next(3) == ([5, 7, 8], 3)


def test_an_answer_that_goes_on_has_its_tokens_in_its_prompt(model: Model) -> None:
    found = sequence(model, [1, 2], resume=Resume(tokens=(300, 301)))
    assert found.keys == [1, 2, 300, 301]
    assert found.start == 4
    assert found.choice.tokens == [300, 301]
    assert found.grown([]).text == (model.piece(300) + model.piece(301)).decode()
    assert found.grown([]).text == ""


def test_an_echo_that_was_delivered_is_not_delivered_again(model: Model) -> None:
    found = sequence(model, [20, 30], echo=True, resume=Resume(tokens=(300,), text=3))
    whole = b"".join(map(model.piece, (20, 30, 300))).decode()
    assert found.grown([]).text == whole[3:]
    assert not found.is_scored


def test_an_echo_is_the_prompt_as_it_was_written(model: Model) -> None:
    request = InferenceRequest(
        id=RequestId("r"), model=ModelId("m"), prompt=TextPrompt(text="the cat"), echo=True
    )
    found = Sequence(Task(0, request, Prompt(parts=([1, 2],)), most=1), 0, model)
    assert found.grown([]).text == "the cat"
