"""Vectors and scores, of tiny models with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.embedder import COMPANY, MOST_TEXTS, Embedder, calls, fill, role_of
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from numpy.typing import NDArray

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import EmbedQuery, RerankQuery, Scores, Vectors
from p2p_mesh.errors import ContextExceeded, ModelError, RequestError
from p2p_mesh.testing.models import (
    CLS,
    EOS,
    SEP,
    Shape,
    write_embedder,
    write_model,
    write_reranker,
)

NAME = ModelId("tiny")
TEXTS = tuple(f"the cat and dog of number {number}. " * (1 + number % 4) for number in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start()
    folder = tmp_path_factory.mktemp("models")
    write_embedder(folder / "mean")
    write_embedder(folder / "cls", pooling="cls")
    write_embedder(folder / "cross", pooling="rank")
    write_model(folder / "last", pooling="last", shape=Shape(context=2048))
    write_reranker(folder / "yes", template="Query: {query}\nDocument: {document}")
    write_model(folder / "writer")
    return folder


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Callable[..., Embedder]:
    """Makes them, each once."""
    made: dict[tuple[str, int], Embedder] = {}

    def make(name: str, context: int = 512) -> Embedder:
        if (name, context) not in made:
            made[name, context] = Embedder(load(folder, name), context=context, threads=1)
        return made[name, context]

    return make


def load(folder: Path, name: str) -> Model:
    return Model(str(folder / name), name="tiny", progress=lambda _: None)


def embed(embedder: Embedder, *inputs: str | tuple[int, ...]) -> NDArray[np.float32]:
    found = embedder.answer(EmbedQuery(model=NAME, inputs=inputs))
    assert isinstance(found, Vectors)
    return np.array([np.frombuffer(one, "<f4") for one in found.vectors])


def rank(embedder: Embedder, query: str, *documents: str) -> Scores:
    found = embedder.answer(RerankQuery(model=NAME, query=query, documents=documents))
    assert isinstance(found, Scores)
    return found


@pytest.mark.parametrize(
    ("name", "role"),
    [("mean", "embed"), ("last", "embed"), ("cross", "rerank"), ("yes", "rerank"),
     ("writer", "generate")],
)  # fmt: skip
def test_a_file_tells_what_it_is_for(folder: Path, name: str, role: str) -> None:
    assert role_of(load(folder, name)) == role


def test_a_writer_gives_no_vectors(folder: Path) -> None:
    with pytest.raises(ModelError, match="it gives no vectors"):
        Embedder(load(folder, "writer"), context=64, threads=1)


@pytest.mark.parametrize("name", ["mean", "cls", "last"])
def test_vectors_have_length_one_and_are_as_alone(
    embedder: Callable[..., Embedder], name: str
) -> None:
    together = embed(embedder(name), *TEXTS)
    alone = np.array([embed(embedder(name), text)[0] for text in TEXTS])
    assert together.shape == (12, 64)
    assert np.abs(together - alone).max() < 1e-6
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    assert (together[0] @ together[1:].T).max() < 0.9999


@pytest.mark.parametrize("name", ["cross", "yes"])
def test_scores_are_as_alone(embedder: Callable[..., Embedder], name: str) -> None:
    together = rank(embedder(name), "the cat", *TEXTS)
    alone = [rank(embedder(name), "the cat", text) for text in TEXTS]
    assert together.scores == pytest.approx([one.scores[0] for one in alone], abs=1e-6)
    assert together.prompt_tokens == sum(one.prompt_tokens for one in alone)
    assert len(set(together.scores)) > 4


def test_two_classes_become_the_share_of_the_first(embedder: Callable[..., Embedder]) -> None:
    assert all(0 < score < 1 for score in rank(embedder("yes"), "the cat", *TEXTS).scores)


def test_mean_and_first_token_differ(embedder: Callable[..., Embedder]) -> None:
    mean, first = embed(embedder("mean"), "the cat"), embed(embedder("cls"), "the cat")
    assert np.abs(mean - first).max() > 0.01


def test_the_last_token_stands_for_a_text_that_is_read_in_parts(
    embedder: Callable[..., Embedder],
) -> None:
    long = tuple(5 + place % 500 for place in range(1900))
    whole, other = embed(embedder("last", 2048), long, (*long[:-1], 9))
    assert np.linalg.norm(whole) == pytest.approx(1)
    assert np.abs(whole - other).max() > 0.01


def test_text_and_its_tokens_are_one_input(embedder: Callable[..., Embedder], folder: Path) -> None:
    tokens = load(folder, "mean").tokenize("the cat")
    assert (tokens[0], tokens[-1]) == (CLS, SEP)
    by_text, by_tokens = embed(embedder("mean"), "the cat", tuple(tokens))
    assert np.array_equal(by_text, by_tokens)
    assert load(folder, "last").tokenize("the cat")[-1] == EOS


def test_prompt_tokens_are_counted(embedder: Callable[..., Embedder]) -> None:
    found = embedder("mean").answer(EmbedQuery(model=NAME, inputs=((7, 8), (9,))))
    assert found.prompt_tokens == 3


def test_a_pair_is_joined_as_a_cross_encoder_wants_it(embedder: Callable[..., Embedder]) -> None:
    pair = embedder("cross")._joined([50, 51], [60])
    assert pair == [CLS, 50, 51, SEP, 60, SEP]


def test_a_text_that_is_too_long_is_refused_with_both_numbers(
    embedder: Callable[..., Embedder],
) -> None:
    with pytest.raises(ContextExceeded, match=r"input 1 has 65 tokens; tiny reads 64 at most") as e:
        embed(embedder("mean", 64), (7,) * 64, (7,) * 65)
    assert e.value.param == "input"
    with pytest.raises(ContextExceeded, match="query with document 0 has"):
        rank(embedder("cross", 64), "a", "b" * 100)


def test_no_text_is_longer_than_the_model_was_trained_for(
    embedder: Callable[..., Embedder],
) -> None:
    with pytest.raises(ContextExceeded, match="reads 512 at most"):
        embed(embedder("mean", 4096), (7,) * 513)


@pytest.mark.parametrize(
    ("inputs", "message"), [(((),), "input 0 is empty"), (((5, 512),), "has the token 512")]
)
def test_inputs_that_are_none_are_refused(
    embedder: Callable[..., Embedder], inputs: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        embed(embedder("mean"), *inputs)
    assert caught.value.param == "input"


def test_what_the_model_does_not_do_is_refused(embedder: Callable[..., Embedder]) -> None:
    assert embedder("mean").capabilities == ("embed",)
    with pytest.raises(RequestError, match="does not rank"):
        rank(embedder("mean"), "a", "b")
    assert embedder("cross").capabilities == ("rerank",)
    with pytest.raises(RequestError, match="gives no vectors"):
        embed(embedder("cross"), "a")


def test_a_cancelled_query_ends_between_two_calls(embedder: Callable[..., Embedder]) -> None:
    asked = iter([False, False, True])
    with pytest.raises(RequestError, match="cancelled"):
        embedder("mean").answer(
            EmbedQuery(model=NAME, inputs=((7,) * 40,) * 9), lambda: next(asked)
        )
    assert list(asked) == []


def test_a_template_is_filled_once() -> None:
    assert (
        fill("Q: {query} D: {document}", "{document}?", "{query}!") == "Q: {document}? D: {query}!"
    )


@given(st.lists(st.integers(1, 200)))
def test_every_text_is_read_once_and_calls_are_bounded(lengths: list[int]) -> None:
    found = list(calls(lengths, COMPANY))
    assert sorted(place for call in found for place in call) == list(range(len(lengths)))
    for call in found:
        assert 1 <= len(call) <= MOST_TEXTS
        assert len(call) == 1 or sum(lengths[place] for place in call) <= COMPANY
