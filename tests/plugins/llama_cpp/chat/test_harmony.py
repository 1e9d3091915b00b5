from __future__ import annotations

from meshnode_llama_cpp.chat.harmony import Harmony

from tests.plugins.llama_cpp.chat.cases import TO, TOOLS, Answer, read


def test_channels_are_told_apart() -> None:
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    )
    assert read(Harmony(TOOLS), *text) == Answer("Yes.", "Hm.")


def test_reasoning_is_told_while_it_lasts() -> None:
    parser = Harmony(TOOLS)
    parser.push("<|channel|>analysis<|message|>Hm.")
    assert parser.reasoning
    parser.push("<|end|>")
    assert not parser.reasoning


def test_a_call_ends_the_answer() -> None:
    parser = Harmony(TOOLS)
    assert read(parser, f'{TO}{{"city": "Paris"}}<|call|>more').content == ""
    assert parser.done


def test_a_single_call_ends_the_answer_with_its_arguments() -> None:
    parser = Harmony(TOOLS, single=True)
    parser.push(f'{TO}{{"city": "Paris"}}')
    assert parser.done


def test_a_header_without_end_is_content() -> None:
    text = "<|start|>" + "x" * 600
    assert read(Harmony(TOOLS), text).content.endswith("x" * 600)
    assert read(Harmony(TOOLS), text) == read(Harmony(TOOLS), *text)


def test_broken_arguments_stay_and_the_rest_is_content() -> None:
    answer = read(Harmony(TOOLS), TO + '{"a": 1]} so')
    assert answer.calls == [["weather", '{"a": 1']]
    assert answer.content == "]} so"
