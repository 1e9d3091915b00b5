from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_llama_cpp import frames
from meshnode_llama_cpp.library import start
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.served import Served, Writer, open_model

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    ModelFile,
    Resume,
    Sampling,
    Text,
    TextPrompt,
    TokenizeQuery,
    TokenPrompt,
    Tokens,
    Vectors,
)
from p2p_mesh.errors import ContextExceeded, ModelError, RequestError
from p2p_mesh.testing.models import write_embedder, write_model, write_reranker
from p2p_mesh.testing.projectors import write_projector

NAME = ModelId("m")


def served(model: ModelFile, **more: object) -> Served:
    start()
    command = frames.Open(model.id, model.path, context=64, slots=2, threads=1, **more)  # type: ignore[arg-type]
    return open_model(command, [], lambda _: None)


def ask(count: int, **more: object) -> InferenceRequest:
    prompt = TokenPrompt(tokens=(5,) * count)
    return InferenceRequest(id=RequestId("r"), model=NAME, prompt=prompt, **more)  # type: ignore[arg-type]


def never() -> bool:
    return False


def test_a_model_that_writes_answers_and_tokenizes(tmp_path: Path) -> None:
    writer = served(write_model(tmp_path / "tiny.gguf"), deterministic=True)
    assert writer.capabilities == ("generate",)
    assert "exact" in writer.numerics("cpu")
    writer.ask(3, ask(4, max_tokens=2))
    outcomes = [one for _ in range(9) if not writer.idle for one in writer.step()]
    assert {one.number for one in outcomes} == {3}
    found = writer.look(TokenizeQuery(model=NAME, prompt=TextPrompt(text="the")), never)
    assert isinstance(found, Tokens)
    assert writer.look(DetokenizeQuery(model=NAME, tokens=found.tokens[1:]), never) == Text(
        text=" the"
    )
    with pytest.raises(RequestError, match="makes no vectors"):
        writer.look(EmbedQuery(model=NAME, inputs=("the",)), never)


def test_a_model_that_writes_may_be_another_writer(tmp_path: Path) -> None:
    class Other(Writer):
        def __init__(self, model: Model, command: frames.Open, gpu_layers: int) -> None:
            super().__init__(model, command, gpu_layers)
            self.notes = ("another",)

    start()
    paths = write_model(tmp_path / "tiny.gguf").path, write_embedder(tmp_path / "e.gguf").path
    opened = [
        open_model(frames.Open("m", path, 64, 1, threads=1), [], lambda _: None, Other)
        for path in paths
    ]
    assert [one.notes for one in opened] == [("another",), ()]


def test_a_prompt_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    writer = served(write_model(tmp_path / "tiny.gguf"))
    writer.ask(1, ask(63))
    with pytest.raises(ContextExceeded, match="64 tokens, the model's context is 64"):
        writer.ask(2, ask(64))


def test_tokens_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    writer = served(write_model(tmp_path / "tiny.gguf"))
    with pytest.raises(RequestError, match="token 99999; the model's vocabulary has 512"):
        writer.ask(1, ask(4, sampling=Sampling(logit_bias=((99999, 1.0),))))
    with pytest.raises(RequestError, match="another vocabulary"):
        writer.ask(2, ask(4, resume=(Resume(tokens=(2**31 - 1,)),)))


def test_an_encoder_makes_vectors_and_does_not_write(tmp_path: Path) -> None:
    reader = served(write_embedder(tmp_path / "small.gguf"))
    assert reader.capabilities == ("embed",)
    assert isinstance(reader.look(EmbedQuery(model=NAME, inputs=("the",)), never), Vectors)
    assert (reader.idle, reader.step()) == (True, [])
    with pytest.raises(RequestError, match="does not write: it makes vectors"):
        reader.ask(1, ask(3))


def test_a_reranker_says_so(tmp_path: Path) -> None:
    assert served(write_reranker(tmp_path / "ranks.gguf")).capabilities == ("rerank",)


def test_a_projector_gives_senses(tmp_path: Path) -> None:
    model, eyes = write_model(tmp_path / "tiny.gguf"), tmp_path / "mmproj.gguf"
    write_projector(eyes)
    assert served(model, projector=str(eyes)).capabilities == ("generate", "vision")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    write_projector(tmp_path / "mmproj.gguf")
    model = write_model(tmp_path / "tiny.gguf")
    with pytest.raises(ModelError):
        served(model, draft=str(tmp_path / "mmproj.gguf"))
