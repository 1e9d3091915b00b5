from typing import Any

import pytest

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    Text,
    TextPrompt,
    TokenizeQuery,
    Tokens,
)
from p2p_mesh.errors import RemoteError, RequestError
from p2p_mesh.front.tokens import detokenize_query, text_body, tokenize_query, tokens_body

TINY = ModelId("tiny")
USER = {"role": "user", "content": "hello"}


def tokenize(**body: Any) -> TokenizeQuery:
    return tokenize_query(body, [TINY], 1_700_000_000)


def test_content_stands_alone() -> None:
    assert tokenize(content="x") == TokenizeQuery(
        model=TINY, prompt=TextPrompt(text="x"), add_special=False, asked_at=1_700_000_000
    )
    assert tokenize(content="x", add_special=True).add_special


def test_prompt_and_messages_stand_as_the_model_has_them() -> None:
    assert tokenize(prompt="x").add_special
    assert not tokenize(prompt="x", add_special_tokens=False).add_special
    query = tokenize(messages=[USER], chat_template_kwargs={"tone": "dry"}, tools=[])
    assert query.add_special
    assert query.prompt == ChatPrompt(messages=(USER,), variables={"tone": "dry"})


def test_how_tokens_are_wanted() -> None:
    query = tokenize(content="x", model="other", parse_special=False, with_pieces=True)
    assert (query.model, query.parse_special, query.with_pieces) == ("other", False, True)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "content"),
        ({"content": 5}, "content"),
        ({"content": "x", "prompt": "x"}, "prompt"),
        ({"messages": []}, "messages"),
        ({"content": "x", "tools": []}, "tools"),
        ({"content": "x", "model": ""}, "model"),
        ({"content": "x", "add_special": 1}, "add_special"),
        ({"content": "x", "add_special": True, "add_special_tokens": False},
         "add_special_tokens"),
        ({"content": "x", "n": 1}, "n"),
    ],
)  # fmt: skip
def test_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        tokenize(**body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ],
)
def test_media_have_no_tokens(part: dict[str, Any]) -> None:
    content = [{"type": "text", "text": "what is it?"}, part]
    with pytest.raises(RequestError, match="has no tokens") as caught:
        tokenize(messages=[USER, {"role": "user", "content": content}])
    assert caught.value.param == "messages[1].content[1]"


@pytest.mark.parametrize(("models", "shown"), [([], "none yet"), ([TINY, ModelId("b")], "tiny, b")])
def test_model_must_be_named_unless_there_is_one(models: list[ModelId], shown: str) -> None:
    for ask in (
        lambda: tokenize_query({"content": "x"}, models, 0),
        lambda: detokenize_query({"tokens": [1]}, models),
    ):
        with pytest.raises(RequestError, match=shown) as caught:
            ask()
        assert caught.value.param == "model"


def test_tokens() -> None:
    assert tokens_body(tokenize(content="x"), Tokens(tokens=(1, 2))) == {"tokens": (1, 2)}


def test_pieces_are_text_or_bytes() -> None:
    reply = Tokens(tokens=(1, 2), pieces=(b"hi", b"\xc3"))
    assert tokens_body(tokenize(content="x", with_pieces=True), reply) == {
        "tokens": [{"id": 1, "piece": "hi"}, {"id": 2, "piece": [195]}]
    }


def test_reply_of_another_kind_is_an_error() -> None:
    query = tokenize(content="x", with_pieces=True)
    for reply in (Text(text="x"), Tokens(tokens=(1,))):
        with pytest.raises(RemoteError):
            tokens_body(query, reply)
    with pytest.raises(RemoteError):
        text_body(Tokens(tokens=()))


def test_detokenize() -> None:
    found = detokenize_query({"tokens": [1, 2]}, [TINY])
    assert found == DetokenizeQuery(model=TINY, tokens=(1, 2))
    assert detokenize_query({"tokens": [], "model": "b"}, []).tokens == ()
    assert text_body(Text(text="hi")) == {"content": "hi"}


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "tokens"), ({"tokens": "x"}, "tokens"), ({"tokens": [-1]}, "tokens[0]"),
     ({"tokens": [], "x": 1}, "x")],
)  # fmt: skip
def test_wrong_field_of_detokenize_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        detokenize_query(body, [TINY])
    assert caught.value.param == param
