"""Queries, and what servers reply to them."""

import struct
from typing import Any

import msgspec
import pytest
from meshnode_openai_endpoint.query import asked, replied, template, templated

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    EmbedQuery,
    Query,
    Reply,
    RerankQuery,
    Scores,
    Text,
    TextPrompt,
    TokenizeQuery,
    Tokens,
)
from p2p_mesh.errors import RemoteError

M = ModelId("m")
EMBED = EmbedQuery(model=M, inputs=("a", "b"))
RERANK = RerankQuery(model=M, query="q", documents=("a", "b"))
TOKENIZE = TokenizeQuery(model=M, prompt=TextPrompt(text="hi"), with_pieces=True)
DETOKENIZE = DetokenizeQuery(model=M, tokens=(1, 2))


def reply(query: Query, body: Any) -> Reply:
    return replied(query, msgspec.json.encode(body))


def test_queries_as_servers_take_them() -> None:
    assert asked(EMBED, "s") == (
        "embeddings", {"model": "s", "input": ["a", "b"], "encoding_format": "float"}
    )  # fmt: skip
    assert asked(RERANK, "s") == (
        "rerank", {"model": "s", "query": "q", "documents": ["a", "b"]}
    )  # fmt: skip
    assert asked(TOKENIZE, "s") == (
        "/tokenize", {"model": "s", "content": "hi", "add_special": True, "parse_special": True,
                      "with_pieces": True},
    )  # fmt: skip
    assert asked(DETOKENIZE, "s") == ("/detokenize", {"model": "s", "tokens": [1, 2]})


def test_vectors_come_in_order_and_have_length_one() -> None:
    found: Any = reply(EMBED, {
        "data": [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3.0, 4.0]}],
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    })  # fmt: skip
    assert struct.unpack("<2f", found.vectors[0]) == pytest.approx((0.6, 0.8))
    assert struct.unpack("<2f", found.vectors[1]) == (0.0, 1.0)
    assert found.prompt_tokens == 5


def test_scores_come_in_order() -> None:
    rows = [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": -3}]
    assert reply(RERANK, {"results": rows, "usage": {"total_tokens": 9}}) == Scores(
        scores=(-3.0, 0.5), prompt_tokens=9
    )


def test_tokens_with_and_without_pieces() -> None:
    assert reply(TOKENIZE, {"tokens": [1, 2]}) == Tokens(tokens=(1, 2))
    pieces = [{"id": 1, "piece": "hé"}, {"id": 2, "piece": [195]}]
    assert reply(TOKENIZE, {"tokens": pieces}) == Tokens(
        tokens=(1, 2), pieces=("hé".encode(), b"\xc3")
    )
    assert reply(DETOKENIZE, {"content": "hi"}) == Text(text="hi")


def test_chat_is_templated_first() -> None:
    prompt = ChatPrompt(messages=({"role": "user", "content": "hi"},))
    query = TokenizeQuery(model=M, prompt=prompt, with_pieces=True)
    assert template(prompt, "s") == (
        "/apply-template", {"model": "s", "messages": [{"role": "user", "content": "hi"}]}
    )  # fmt: skip
    found = templated(query, b'{"prompt": "<user>hi"}')
    assert (found.prompt, found.with_pieces) == (TextPrompt(text="<user>hi"), True)


def test_chat_goes_to_another_node_as_it_is() -> None:
    prompt = ChatPrompt(
        messages=({"role": "user", "content": "hi"},), variables={"enable_thinking": False}
    )
    assert asked(TokenizeQuery(model=M, prompt=prompt), "s") == (
        "/tokenize", {"model": "s", "messages": [{"role": "user", "content": "hi"}],
                      "chat_template_kwargs": {"enable_thinking": False}, "add_special": True,
                      "parse_special": True, "with_pieces": False},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("query", "body"),
    [
        (EMBED, {"data": [{"index": 0, "embedding": [1]}]}),
        (EMBED, {"data": [{"index": 0, "embedding": [1]}] * 2}),
        (EMBED, {"data": [{"index": 0, "embedding": [0]}, {"index": 1, "embedding": []}]}),
        (EMBED, {"data": [{"index": 0, "embedding": "AAAA"}]}),
        (RERANK, {"results": [{"index": 7, "relevance_score": 1}]}),
        (TOKENIZE, {"tokens": [-1]}),
        (DETOKENIZE, {}),
    ],
)
def test_replies_that_are_none(query: Query, body: Any) -> None:
    with pytest.raises(RemoteError):
        reply(query, body)
