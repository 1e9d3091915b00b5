from __future__ import annotations

import codecs
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins.llama_cpp.chat.cases import (
    BOTH,
    CASES,
    GLM,
    HERMES,
    TEMPLATES,
    Answer,
    Case,
    parser,
    read,
)


def ids(case: Case) -> str:
    return f"{case.family}: {case.text[:40]}"


def check(answer: Answer, case: Case) -> None:
    assert answer.content == case.content
    assert answer.reasoning == case.reasoning
    assert [name for name, _ in answer.calls] == [name for name, _ in case.calls]
    for (_, text), (_, wanted) in zip(answer.calls, case.calls, strict=True):
        assert (text if isinstance(wanted, str) else json.loads(text)) == wanted


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_an_answer_means_the_same_however_it_is_cut(case: Case) -> None:
    check(read(parser(case), case.text), case)
    check(read(parser(case), *case.text), case)
    for place in range(1, len(case.text)):
        check(read(parser(case), case.text[:place], case.text[place:]), case)


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_an_answer_means_the_same_however_its_bytes_are_cut(case: Case) -> None:
    data = case.text.encode()
    for size in (1, 2, 3, 5, 7):
        decoder = codecs.getincrementaldecoder("utf-8")()
        pieces = [decoder.decode(data[at : at + size]) for at in range(0, len(data), size)]
        check(read(parser(case), *pieces), case)


@given(st.sampled_from(CASES), st.lists(st.integers(0, 200)))
def test_any_cuts_change_nothing(case: Case, places: list[int]) -> None:
    cuts = sorted({0, len(case.text), *(place % (len(case.text) + 1) for place in places)})
    pieces = [case.text[start:end] for start, end in pairwise(cuts)]
    assert read(parser(case), *pieces) == read(parser(case), case.text)


PARTS = sorted({part for case in CASES for part in (case.text[:12], case.text[-12:])})
MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "{", "}", "[", ",",
         '"name": "add"',
         "<function=add>", "<parameter=a>", "</parameter>", "[TOOL_CALLS]", "[ARGS]", "<arg_key>",
         "<|channel|>final", "<|message|>", "<|end|>", " ", "\n", "a",
         '"arguments": {}']  # fmt: skip


@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.lists(st.sampled_from(MARKS + PARTS) | st.text(max_size=3), max_size=12),
    st.booleans(),
)
def test_rubbish_is_read_alike_whole_and_in_letters(
    family: str, parts: list[str], opened: bool
) -> None:
    text = "".join(parts)
    case = Case(family, text, opened=opened)
    assert read(parser(case), *text) == read(parser(case), text)


@given(st.sampled_from(sorted(TEMPLATES)), st.text(alphabet="abc é.,:\n", max_size=40))
def test_plain_text_is_content(family: str, text: str) -> None:
    if family != "r1":
        assert read(parser(Case(family, text)), *text).content == text


@pytest.mark.parametrize("family", ["hermes", "glm"])
def test_a_single_call_ends_the_answer(family: str) -> None:
    call = {"hermes": HERMES, "glm": GLM}[family]
    one = parser(Case(family, ""), single=True)
    answer = Answer()
    for letter in call + call:
        answer.add(one.push(letter))
    assert one.done
    assert [name for name, _ in answer.calls] == ["weather"]


def test_several_calls_end_the_answer_where_the_format_says_so() -> None:
    case = next(case for case in CASES if case.family == "command-r" and case.calls == BOTH)
    whole = parser(case)
    whole.push(case.text[:-1])
    assert not whole.done
    whole.push(case.text[-1])
    assert whole.done
    assert whole.push("more").text == ""


def test_reasoning_is_told_while_it_lasts() -> None:
    thinking = parser(Case("qwen3", "", opened=True))
    assert thinking.reasoning
    assert thinking.push("Hm.").reasoning == "Hm."
    assert thinking.reasoning
    thinking.push("</think>Yes")
    assert not thinking.reasoning


def test_text_without_markers_is_not_held_back() -> None:
    plain = parser(Case("hermes", ""))
    assert [plain.push(piece).text for piece in ("Hel", "lo,", " you")] == ["Hel", "lo,", " you"]


def test_arguments_come_as_they_grow() -> None:
    growing = parser(Case("hermes", ""))
    growing.push('<tool_call>{"name": "weather", "arguments": {"city": "')
    assert growing.push("Par").calls[0].arguments == "Par"
    assert growing.push("is").calls[0].arguments == "is"


def test_a_string_in_a_tag_comes_as_it_grows() -> None:
    growing = parser(Case("glm", ""))
    growing.push("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>")
    assert growing.push("Par").calls[0].arguments == '"Par'


def test_no_more_calls_are_made_than_a_delta_can_count() -> None:
    many = parser(Case("hermes", ""))
    made = read(many, '<tool_call>{"name": "add", "arguments": {}}</tool_call>' * 1030)
    assert len(made.calls) == 1024
    assert many.done


def test_space_without_end_is_no_call() -> None:
    text = "<tool_call>" + " " * 600
    for family in ("hermes", "glm", "mistral", "llama"):
        assert read(parser(Case(family, "")), *text).content == text


def reversed_keys(arguments: str) -> str:
    """A call whose arguments come before its name: read whole, when it is complete."""
    return f'<tool_call>\n{{"arguments": {arguments}, "name": "weather"}}\n</tool_call>'


def test_half_a_pair_of_surrogates_stays_an_escape() -> None:
    answer = read(parser(Case("hermes", "")), reversed_keys('{"x": "\\ud800"}'))
    assert answer.calls == [["weather", '{"x": "\\ud800"}']]
    assert answer.calls[0][1].encode()


def test_numbers_that_json_does_not_have_are_no_call() -> None:
    for number in ("NaN", "Infinity", "1e999"):
        text = reversed_keys(f'{{"x": {number}}}')
        answer = read(parser(Case("hermes", "")), text)
        assert (answer.calls, answer.content) == ([], text)
