"""How many tokens a prompt has, and when a first token is late: both learned."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.estimates import ENOUGH, FLOOR, MEDIUM_SIZE, MODELS, Firsts, TokenSizes, size
from p2p_mesh.core.names import ModelId, RequestId
from p2p_mesh.core.records import (
    ChatPrompt,
    DetokenizeQuery,
    EmbedQuery,
    InferenceRequest,
    RerankQuery,
    TextPrompt,
    TokenPrompt,
    Tool,
)

M = ModelId("m")


def request(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=M, prompt=prompt)


def chat(content: Any, **more: Any) -> InferenceRequest:
    return request(ChatPrompt(messages=({"role": "user", "content": content},), **more))


def text(length: int) -> InferenceRequest:
    return request(TextPrompt(text="x" * length))


def test_text_is_as_long_as_it_is() -> None:
    assert size(request(TextPrompt(text="abc", suffix="de"))) == 5
    assert 1000 < size(chat("x" * 1000)) < 1050
    assert 1000 < size(chat([{"type": "text", "text": "x" * 1000}])) < 1050
    assert size(request(TokenPrompt(tokens=(1,) * 100))) == 400


def test_text_is_counted_in_bytes_of_utf8() -> None:
    word = "\u4f60\u597d"
    assert size(request(TextPrompt(text=word, suffix=word))) == 12
    assert size(chat(word)) - size(chat("")) == 6
    assert size(chat([{"type": word}])) - size(chat([{"type": ""}])) == 6
    assert size(EmbedQuery(model=M, inputs=(word,))) == 6
    assert size(RerankQuery(model=M, query=word, documents=(word, "d"))) == 19
    assert size(chat("\ud800")) - size(chat("")) == 3


def test_tools_are_read_too() -> None:
    tool = Tool(name="f", description="x" * 100, parameters={"type": "y" * 100})
    assert size(chat("a", tools=(tool,))) - size(chat("a")) > 200


def test_medium_counts_for_what_it_becomes() -> None:
    image = {"type": "image_url", "image_url": {"url": "x" * 1_000_000}}
    assert MEDIUM_SIZE < size(chat([image])) < MEDIUM_SIZE + 50


def test_queries_have_a_size() -> None:
    assert size(EmbedQuery(model=M, inputs=("abc", (1, 2)))) == 11
    assert size(RerankQuery(model=M, query="ab", documents=("abc", "d"))) == 8
    assert size(DetokenizeQuery(model=M, tokens=(1,))) == 0


def test_content_may_be_as_deep_as_a_peer_likes() -> None:
    content: Any = "x"
    for _ in range(100_000):
        content = [content]
    assert size(chat(content)) > 0
    while isinstance(content, list):  # or its end would be as deep
        content = content.pop()


def test_tokens_are_guessed_at_first() -> None:
    sizes = TokenSizes()
    assert sizes.tokens("m", text(401)) == 101
    assert sizes.tokens("m", request(TokenPrompt(tokens=(1,) * 7))) == 7


def test_size_of_a_token_is_learned() -> None:
    sizes = TokenSizes()
    for _ in range(30):
        sizes.learn("m", text(1000), 500)
    assert sizes.tokens("m", text(1000)) == pytest.approx(500, rel=0.01)
    assert sizes.tokens("n", text(1000)) == 250


def test_tokens_teach_nothing_of_text() -> None:
    sizes = TokenSizes()
    sizes.learn("m", request(TokenPrompt(tokens=(1,) * 100)), 1)
    sizes.learn("m", text(1000), 0)
    assert sizes.tokens("m", text(1000)) == 250


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2**53)), max_size=50))
def test_liar_moves_the_guess_within_what_can_be(said: list[tuple[int, int]]) -> None:
    sizes = TokenSizes()
    for length, tokens in said:
        sizes.learn("m", text(length), tokens)
    assert 1000 / 16 <= sizes.tokens("m", text(1000)) <= 1000


def test_models_are_forgotten_in_the_end() -> None:
    sizes = TokenSizes()
    for number in range(MODELS + 1):
        sizes.learn(str(number), text(1000), 1000)
    assert sizes.tokens("0", text(1000)) == 250
    assert sizes.tokens("1", text(1000)) > 250


def taken(*seconds: float, prompt_tokens: int = 100) -> Firsts:
    firsts = Firsts()
    for one in seconds:
        firsts.took("m", one, prompt_tokens)
    return firsts


def test_nothing_is_late_before_enough_was_seen() -> None:
    assert taken(*[1.0] * (ENOUGH - 1)).bound("m", 100) is None
    assert taken(*[1.0] * ENOUGH).bound("n", 100) is None


def test_late_is_three_times_what_is_usual() -> None:
    assert taken(*[1.0] * ENOUGH).bound("m", 100) == pytest.approx(3.0)
    assert taken(*[1.0] * 19, 50.0).bound("m", 100) == pytest.approx(3.0)
    assert taken(*[1.0] * 18, 50.0, 50.0).bound("m", 100) == pytest.approx(150.0)


def test_long_prompt_has_longer() -> None:
    firsts = taken(*[1.0] * ENOUGH, prompt_tokens=1000)
    longer, shorter = firsts.bound("m", 10_000), firsts.bound("m", 100)
    assert longer is not None
    assert shorter is not None
    assert 25 < longer < 30
    assert shorter == FLOOR


def test_old_times_are_forgotten() -> None:
    assert taken(*[60.0] * 20, *[1.0] * 64).bound("m", 100) == pytest.approx(3.0)
