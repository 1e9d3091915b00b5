"""What prompts have in common, and who has read it."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_mesh.core import chain
from p2p_mesh.core.chain import BLOCK, COVERED, MAX_LINKS, Prefixes, links
from p2p_mesh.core.names import ModelId, PeerId, RequestId
from p2p_mesh.core.records import ChatPrompt, InferenceRequest, TextPrompt, TokenPrompt, Tool

A, B = PeerId("a"), PeerId("b")
Message = dict[str, Any]


def request(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> InferenceRequest:
    return InferenceRequest(id=RequestId("r"), model=ModelId("m"), prompt=prompt)


def text(content: str) -> tuple[bytes, ...]:
    return links(request(TextPrompt(text=content)))


def chat(*messages: Message, **more: Any) -> tuple[bytes, ...]:
    return links(request(ChatPrompt(messages=messages, **more)))


def said(content: str, role: str = "user") -> Message:
    return {"role": role, "content": content}


def test_block_is_a_link() -> None:
    assert text("x" * (BLOCK - 1)) == ()
    assert [len(link) for link in text("x" * (3 * BLOCK + 1))] == [8, 8, 8]


def test_prompts_that_begin_alike_share_links() -> None:
    one, other = text("x" * 1000 + "a" * 1000), text("x" * 1000 + "b" * 1000)
    assert one[:3] == other[:3]
    assert not {*one[3:]} & {*other[3:]}


def test_what_comes_before_changes_all_that_follows() -> None:
    assert not {*text("a" + "x" * 2000)} & {*text("b" + "x" * 2000)}


@settings(deadline=None)
@given(st.lists(st.text(max_size=600), min_size=1, max_size=8), st.text(max_size=600))
def test_next_turn_has_all_links_of_the_turn_before(contents: list[str], more: str) -> None:
    first = chat(*map(said, contents))
    second = chat(*map(said, contents), said(more, "assistant"), said("and now?"))
    assert second[: len(first)] == first


def test_order_of_fields_changes_nothing() -> None:
    long = "x" * 1000
    assert chat({"role": "user", "content": long}) == chat({"content": long, "role": "user"})


def test_tools_are_part_of_the_prompt() -> None:
    tools = (Tool(name="weather"),)
    assert chat(said("x" * 1000), tools=tools) != chat(said("x" * 1000))


def test_tokens_have_links() -> None:
    one = links(request(TokenPrompt(tokens=(*range(64), *range(64)))))
    other = links(request(TokenPrompt(tokens=(*range(64), *range(1, 65)))))
    assert (len(one), len(other), one[0] == other[0], one[1] == other[1]) == (2, 2, True, False)


@pytest.mark.parametrize(
    "prompt",
    [
        TextPrompt(text="x" * (8 << 20)),
        TokenPrompt(tokens=(7,) * (1 << 20)),
        ChatPrompt(messages=(said("x" * (8 << 20)), said("y"))),
        ChatPrompt(messages=tuple(said("x" * 2000) for _ in range(4096))),
    ],
)
def test_prompt_of_any_length_has_few_links(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> None:
    assert len(links(request(prompt))) == MAX_LINKS


def test_message_that_no_json_can_hold_has_links() -> None:
    assert chat({"content": {1: "x" * 1000, "a": 2}}) != ()


def test_lone_surrogate_has_links() -> None:
    assert text("\ud800" * 1000) != ()


def test_nothing_is_shared_with_whoever_read_nothing() -> None:
    prefixes = Prefixes()
    prefixes.remember(A, "m", ())
    assert prefixes.shared(A, "m", text("x" * 1000)) == 0.0
    prefixes.remember(A, "m", text("y" * 1000))
    assert prefixes.shared(A, "m", text("x" * 1000)) == 0.0
    assert prefixes.shared(A, "m", ()) == 0.0


def test_share_is_of_the_prompt() -> None:
    prefixes = Prefixes()
    prefixes.remember(A, "m", text("x" * 4 * BLOCK))
    assert prefixes.shared(A, "m", text("x" * 4 * BLOCK)) == 1.0
    assert prefixes.shared(A, "m", text("x" * 4 * BLOCK + "y" * 4 * BLOCK)) == 0.5


def test_long_blocks_count_for_more() -> None:
    prefixes = Prefixes()
    prefixes.remember(A, "m", text("x" * (COVERED // 2)))
    assert prefixes.shared(A, "m", text("x" * COVERED)) == pytest.approx(0.5, abs=0.01)


def test_each_node_and_model_has_its_own() -> None:
    prefixes, found = Prefixes(), text("x" * 1000)
    prefixes.remember(A, "m", found)
    prefixes.remember(None, "m", found)
    assert prefixes.shared(None, "m", found) == 1.0
    assert prefixes.shared(B, "m", found) == 0.0
    assert prefixes.shared(A, "n", found) == 0.0
    prefixes.forget(A)
    assert prefixes.shared(A, "m", found) == 0.0
    assert prefixes.shared(None, "m", found) == 1.0


def numbered(number: int, length: int) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(4, "big") + n.to_bytes(4, "big") for n in range(length))


def test_prompts_read_long_ago_are_forgotten_from_their_ends() -> None:
    prefixes = Prefixes()
    for number in range(9):
        prefixes.remember(A, "m", numbered(number, 500))
    first = prefixes.shared(A, "m", numbered(0, 500))
    assert 0.0 < first < 0.9
    assert prefixes.shared(A, "m", numbered(1, 500)) == 1.0


def test_all_of_it_is_bounded() -> None:
    prefixes = Prefixes()
    count = chain.TOTAL // 500 + 3
    for number in range(count):
        prefixes.remember(PeerId(str(number)), "m", numbered(number, 500))
    kept = [prefixes.shared(PeerId(str(n)), "m", numbered(n, 500)) for n in range(count)]
    assert sum(kept) == chain.TOTAL // 500
    assert kept[-1] == 1.0
    for number in range(count):
        prefixes.forget(PeerId(str(number)))
    prefixes.remember(A, "m", numbered(0, 500))
    assert prefixes.shared(A, "m", numbered(0, 500)) == 1.0
