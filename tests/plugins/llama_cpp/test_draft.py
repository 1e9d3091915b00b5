from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.model import Model

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import Shape, write_model

PLAN = Plan(context=256, slots=2, threads=1, rows=48)
TOKENS = [1, *range(10, 30)]


def draft(model: Model) -> Draft:
    return Draft(model, Context(model, PLAN), model, slots=2)


def test_a_guess_is_what_the_model_would_say(model: Model, context: Context) -> None:
    tokens, said = list(TOKENS), []
    for _ in range(5):
        context.forget(0)
        context.rows.clear()
        row = context.rows.add(0, 0, tokens, outputs=1)
        context.decode()
        said.append(int(context.logits(row).argmax()))
        tokens.append(said[-1])
    assert draft(model).guess({0: (TOKENS, 5)}) == {0: said}


def test_what_was_wrong_is_taken_back(model: Model) -> None:
    one, other = draft(model), draft(model)
    one.guess({0: (TOKENS, 5), 1: (TOKENS[:9], 2)})
    turned = [*TOKENS, 400, 401]
    assert one.guess({0: (turned, 3)}) == other.guess({0: (turned, 3)})


def test_sequences_are_guessed_for_together(model: Model) -> None:
    together = draft(model).guess({0: (TOKENS, 4), 1: (TOKENS[:7], 2)})
    assert together[0] == draft(model).guess({0: (TOKENS, 4)})[0]
    assert together[1] == draft(model).guess({1: (TOKENS[:7], 2)})[1]


def test_a_long_text_is_read_a_part_at_a_time(model: Model) -> None:
    small, long = draft(model), [1, *(10 + n % 300 for n in range(100))]
    assert small.guess({0: (long, 3)}) == {0: []}
    assert small.guess({0: (long, 3)}) == {0: []}
    assert len(small.guess({0: (long, 3)})[0]) == 3


def test_a_token_that_it_does_not_have_is_not_read(model: Model) -> None:
    unknown = [1, 10, model.token_count]
    assert draft(model).guess({0: (unknown, 3), 1: (TOKENS, 1)})[0] == []


def test_another_vocabulary_is_refused(model: Model, tmp_path: Path) -> None:
    write_model(tmp_path / "other.gguf", shape=Shape(vocabulary=1024))
    other = Model(str(tmp_path / "other.gguf"), name="other", progress=lambda _: None)
    with pytest.raises(ModelError, match="another vocabulary"):
        Draft(other, Context(other, PLAN), model, slots=2)


def test_a_model_that_cannot_go_back_is_refused(model: Model, tmp_path: Path) -> None:
    write_model(tmp_path / "state.gguf", kind="recurrent")
    state = Model(str(tmp_path / "state.gguf"), name="state", progress=lambda _: None)
    with pytest.raises(ModelError, match="cannot take back"):
        Draft(state, Context(state, PLAN), model, slots=2)
