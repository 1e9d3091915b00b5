from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.core.records import KvType
from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import Shape, write_embedder, write_model

PROMPT = [1, 10, 20, 30, 40, 50]


def read(context: Context, slot: int, tokens: list[int], position: int = 0) -> NDArray[np.float32]:
    """The logits after the last of these tokens."""
    context.rows.clear()
    row = context.rows.add(slot, position, tokens, outputs=1)
    context.decode()
    return context.logits(row).copy()


def test_sequences_do_not_see_one_another(context: Context) -> None:
    alone = read(context, 0, PROMPT)
    context.forget(0)
    context.rows.clear()
    row = context.rows.add(0, 0, PROMPT, outputs=1)
    context.rows.add(1, 0, [1, 99, 98, 97, 96], outputs=1)
    context.decode()
    assert np.array_equal(context.logits(row), alone)


def test_a_copied_beginning_is_the_beginning(context: Context) -> None:
    whole = read(context, 0, PROMPT)
    context.copy(0, 1)
    context.trim(1, 4)
    assert np.array_equal(read(context, 1, PROMPT[4:], 4), whole)


def test_a_saved_state_goes_on_where_it_was(context: Context) -> None:
    whole = read(context, 0, PROMPT)
    context.trim(0, 5)
    state = context.save(0)
    context.restore(1, state)
    assert np.array_equal(read(context, 1, PROMPT[5:], 5), whole)


def test_every_row_can_be_answered(context: Context) -> None:
    context.rows.clear()
    row = context.rows.add(0, 0, PROMPT, outputs=3)
    context.decode()
    assert row == 3
    last = context.logits(row + 2).copy()
    context.forget(0)
    assert np.array_equal(read(context, 0, PROMPT), last)


def test_rows_know_whose_they_are(context: Context) -> None:
    context.rows.clear()
    assert context.rows.owners == []
    context.rows.add(0, 0, PROMPT[:2], outputs=0)
    context.rows.add(1, 0, PROMPT[:3], outputs=1)
    assert context.rows.owners == [0, 0, 1, 1, 1]


def test_what_is_cleared_is_as_new(context: Context) -> None:
    first = read(context, 0, PROMPT)
    context.clear()
    assert np.array_equal(read(context, 0, PROMPT), first)


def test_a_model_that_keeps_nothing_is_refused_unless_it_will_do(
    model: Model, tmp_path: Path
) -> None:
    class Any(Context):
        takes_forgetful = True

        def _warm(self, token: int) -> None:
            """It has no logits."""

    write_embedder(tmp_path / "bert.gguf")
    reads = Model(str(tmp_path / "bert.gguf"), name="bert", progress=lambda _: None)
    with pytest.raises(ModelError, match="bert has no memory of what it read"):
        Context(reads, Plan(256, 1, 1, 48))
    assert not Any(reads, Plan(256, 1, 1, 48)).remembers
    assert Context(model, Plan(256, 1, 1, 48)).remembers


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_smaller_kv_cache_is_nearly_the_same(tmp_path: Path, kv_type: KvType) -> None:
    write_model(tmp_path / "wide.gguf", shape=Shape(heads=2, kv_heads=2))
    model = Model(str(tmp_path / "wide.gguf"), name="wide", progress=lambda _: None)
    usual, small = (Context(model, Plan(256, 1, 1, 48, kind)) for kind in ("f16", kv_type))
    one, other = read(usual, 0, PROMPT), read(small, 0, PROMPT)
    assert not np.array_equal(one, other)
    assert np.corrcoef(one, other)[0, 1] > 0.9


def test_attention_without_flash_is_nearly_the_same(model: Model) -> None:
    flash, plain = (read(Context(model, Plan(256, 1, 1, 48, flash=on)), 0, PROMPT)
                    for on in (True, False))  # fmt: skip
    assert np.abs(flash - plain).max() < 0.1 * flash.std()
    assert not np.array_equal(flash, plain)


def test_a_kv_type_that_does_not_fit_is_refused_in_words(model: Model) -> None:
    with pytest.raises(ModelError, match="block size 32 does not divide"):
        Context(model, Plan(256, 1, 1, 48, "q8_0"))
