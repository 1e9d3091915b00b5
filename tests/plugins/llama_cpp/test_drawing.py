from __future__ import annotations

import msgspec
import pytest
from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.drawing import Drawing, Drawn, Fed, Start
from meshnode_llama_cpp.grammar import Grammars
from meshnode_llama_cpp.model import Model

from p2p_mesh.core.records import Sampling
from p2p_mesh.errors import RequestError

PROMPT = [1, 10, 20, 30]
GREEDY = Sampling(temperature=0)


@pytest.fixture
def drawing(context: Context, model: Model) -> Drawing:
    return Drawing(context, model, Grammars(model))


def compute(context: Context, tokens: list[int], position: int = 0, *, outputs: int = 1) -> int:
    context.rows.clear()
    row = context.rows.add(0, position, tokens, outputs=outputs)
    context.decode()
    return row


def greedy(context: Context, drawing: Drawing, count: int) -> list[int]:
    """What the model says after the prompt, one token a call."""
    context.forget(0)
    drawing.begin(Start(0, GREEDY))
    row = compute(context, PROMPT)
    said: list[int] = []
    while len(said) < count:
        (token,) = drawing.draw(Fed(0, row, len(said))).tokens
        row = compute(context, [token], len(PROMPT) + len(said))
        said.append(token)
    return said


def test_right_guesses_are_taken_with_the_token_after_them(
    context: Context, drawing: Drawing
) -> None:
    said = greedy(context, drawing, 4)
    context.trim(0, len(PROMPT))
    row = compute(context, said[:3], len(PROMPT), outputs=3)
    assert drawing.draw(Fed(0, row, 1, guesses=tuple(said[1:3]))).tokens == tuple(said[1:4])


def test_nothing_is_drawn_after_a_wrong_guess(context: Context, drawing: Drawing) -> None:
    said = greedy(context, drawing, 2)
    context.trim(0, len(PROMPT))
    wrong = (said[1] + 1) % 256
    row = compute(context, [said[0], wrong, wrong], len(PROMPT), outputs=3)
    assert drawing.draw(Fed(0, row, 1, guesses=(wrong, wrong))).tokens == (said[1],)


def test_targets_are_scored_where_they_are_known(context: Context, drawing: Drawing) -> None:
    drawing.begin(Start(0, GREEDY, top=2))
    row = compute(context, PROMPT, outputs=4)
    drawn = drawing.draw(Fed(0, row, targets=(10, 20, 30, -1)))
    assert [one.token for one in drawn.scores] == [10, 20, 30]
    assert len(drawn.tokens) == len(drawn.logprobs) == 1
    assert all(len(one.top) == 2 for one in (*drawn.scores, *drawn.logprobs))


def test_only_read_rows_draw_nothing(context: Context, drawing: Drawing) -> None:
    drawing.begin(Start(0, GREEDY))
    assert drawing.draw(Fed(0, compute(context, PROMPT), draws=False)) == Drawn(0)


def test_a_grammar_goes_on_where_its_tokens_had_come(
    context: Context, drawing: Drawing, model: Model
) -> None:
    grammar = 'start: " abc"'
    taken = model.tokenize("ab", around=False)
    drawing.begin(Start(0, GREEDY, grammar=grammar, taken=tuple(taken)))
    (token,) = drawing.draw(Fed(0, compute(context, [*PROMPT, *taken]), len(taken))).tokens
    assert model.piece(token) == b"c"


def test_a_grammar_that_was_compiled_is_not_compiled_again(
    context: Context, drawing: Drawing, model: Model
) -> None:
    matcher = Grammars(model).compile('start: " abc"')
    drawing.begin(Start(0, GREEDY, grammar="start: nothing"), matcher)
    (token,) = drawing.draw(Fed(0, compute(context, PROMPT))).tokens
    assert b" abc".startswith(model.piece(token))


def test_a_grammar_that_cannot_be_is_told(drawing: Drawing) -> None:
    with pytest.raises(RequestError, match="cannot be followed"):
        drawing.begin(Start(0, GREEDY, grammar="start: nothing"))


def test_ends_are_harmless_and_a_slot_begins_anew(context: Context, drawing: Drawing) -> None:
    drawing.end(0)
    drawing.begin(Start(0, GREEDY))
    drawing.begin(Start(0, Sampling(temperature=0, logit_bias=((77, 100.0),))))
    assert drawing.draw(Fed(0, compute(context, PROMPT))).tokens == (77,)
    drawing.end(0)
    drawing.end(0)


def test_all_of_it_travels() -> None:
    for one in (Start(1, GREEDY, before=(1,), top=3), Fed(1, 2, guesses=(4,)), Drawn(1, (5,))):
        data = msgspec.msgpack.encode(one)
        assert msgspec.msgpack.decode(data, type=type(one)) == one
