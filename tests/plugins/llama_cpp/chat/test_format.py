from __future__ import annotations

import pytest
from meshnode_llama_cpp.chat.format import FALLBACK, Thought, spell, tell

from tests.plugins.llama_cpp.chat.cases import CASES, TEMPLATES, Answer, Case, parser, read


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("hermes", "hermes"),
        ("qwen3", "hermes"),
        ("r1", "deepseek"),
        ("deepseek", "deepseek"),
        ("qwen-xml", "qwen-xml"),
        ("llama", "llama"),
        ("mistral", "mistral"),
        ("mistral-array", "mistral"),
        ("glm", "glm"),
        ("harmony", "harmony"),
        ("command-r", "command-r"),
        ("json", "json"),
    ],
)
def test_a_family_is_told_from_its_template(name: str, family: str) -> None:
    assert tell(TEMPLATES[name]).family == family


def test_reasoning_is_split_only_where_the_template_knows_it() -> None:
    assert tell(TEMPLATES["hermes"]).thought is None
    assert tell(TEMPLATES["qwen3"]).thought == Thought("<think>", "</think>")
    assert tell(TEMPLATES["mistral"]).thought == Thought("[THINK]", "[/THINK]")


def test_reasoning_that_is_only_closed_is_assumed() -> None:
    assert tell("content.split('</think>')[-1]").thought == Thought("<think>", "</think>", True)


def test_markers_of_calls_mean_nothing_without_tools() -> None:
    form = tell(TEMPLATES["mistral"])
    assert form.marks(tools=True) == {"[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"}
    assert form.marks(tools=False) == {"[THINK]", "[/THINK]"}
    assert "<|call|>" in tell(TEMPLATES["harmony"]).marks(tools=False)


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_what_is_spelled_is_read(family: str) -> None:
    calls = tell(TEMPLATES[family]).calls
    if calls.tags is None and family != "harmony":
        made = [("add", '{"a": 1}'), ("add", "{}")]
        thought = "</think>" if family == "r1" else ""
        answer = read(parser(Case(family, "")), thought, spell(calls, made))
        assert answer == Answer(calls=[[name, text] for name, text in made])


def test_tags_are_spelled_as_json() -> None:
    calls = tell(TEMPLATES["glm"]).calls
    assert spell(calls, [("add", "{}")]) == spell(FALLBACK, [("add", "{}")])


def test_each_family_has_its_cases() -> None:
    assert {case.family for case in CASES} == set(TEMPLATES)
