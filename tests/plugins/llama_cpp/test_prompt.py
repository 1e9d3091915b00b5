from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompts

from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, TextPrompt, TokenPrompt
from p2p_mesh.errors import ModelError, RequestError
from p2p_mesh.testing.models import BOS, EOS, IM_END, IM_START, LOOPING, write_model


def ask(prompt: ChatPrompt | TextPrompt | TokenPrompt, **more: Any) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("tiny"), prompt=prompt, **more)


HELLO = ask(ChatPrompt(messages=({"role": "user", "content": "Hello"},)))


def load(path: Path, template: str | None) -> Model:
    write_model(path, template=template)
    return Model(str(path), name=path.stem, progress=lambda _: None, offload=False)


def test_a_chat_is_written_by_the_template(model: Model) -> None:
    tokens = Prompts(model, 512).tokens(HELLO)
    assert tokens[:2] == [BOS, IM_START]
    assert tokens.count(IM_START) == 2
    assert tokens.count(IM_END) == 1


def test_the_beginning_is_not_doubled(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    tokens = Prompts(load(tmp_path / "twice.gguf", template), 512).tokens(HELLO)
    assert tokens.count(BOS) == 1


def test_a_text_is_tokenized_as_it_is(model: Model) -> None:
    prompts = Prompts(model, 512)
    assert prompts.tokens(ask(TextPrompt(text="the"))) == model.tokenize("the")


def test_tokens_pass_through(model: Model) -> None:
    assert Prompts(model, 512).tokens(ask(TokenPrompt(tokens=(5, 6)))) == [5, 6]


def test_a_token_outside_the_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(RequestError, match="token 512; the model's vocabulary has 512") as caught:
        Prompts(model, 512).tokens(ask(TokenPrompt(tokens=(5, 512))))
    assert caught.value.param == "prompt"


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: Model) -> None:
    prompt = TokenPrompt(tokens=(5,) * 9000)
    with pytest.raises(RequestError, match="9000 tokens, the model's context is 4096"):
        Prompts(model, 4096).tokens(ask(prompt))


def test_a_text_that_cannot_fit_is_not_tokenized_whole(model: Model) -> None:
    with pytest.raises(RequestError, match=r"more than \d+ tokens, the model.s context is 64"):
        Prompts(model, 64).tokens(ask(TextPrompt(text="a" * 100_000)))


def test_a_model_without_template_gets_chatml(tmp_path: Path) -> None:
    prompts = Prompts(load(tmp_path / "plain.gguf", None), 512)
    assert prompts.tokens(HELLO).count(IM_START) == 2
    assert prompts.stops(HELLO) == ("<|im_end|>",)
    assert prompts.notes == ("plain has no chat template; ChatML is used",)


def test_a_model_with_template_stops_where_it_is_told(model: Model) -> None:
    prompts = Prompts(model, 512)
    assert prompts.stops(ask(TextPrompt(text="a"), stop=("x",))) == ("x",)
    assert prompts.notes == ()


def test_a_looping_template_is_found_at_once(tmp_path: Path) -> None:
    model = load(tmp_path / "loop.gguf", LOOPING)
    with pytest.raises(ModelError, match="the chat template of loop did not end within 1 s"):
        Prompts(model, 512)


def test_broken_unicode_from_a_template_does_no_harm(tmp_path: Path) -> None:
    model = load(tmp_path / "broken.gguf", r"{{ '\ud800' }}")
    assert Prompts(model, 512).tokens(HELLO)[0] == BOS


def test_ends_of_texts_are_known(model: Model) -> None:
    assert (model.begin, model.end) == (BOS, EOS)
