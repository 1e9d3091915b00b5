# ruff: noqa: E501  answers stand in one piece, as models write them

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from meshnode_llama_cpp.chat.format import Format, tell
from meshnode_llama_cpp.chat.grammar import Wanted, grammar
from meshnode_llama_cpp.chat.harmony import Harmony
from meshnode_llama_cpp.chat.marked import Marked
from meshnode_llama_cpp.chat.tools import check_tools

from p2p_mesh.core.records import Tool
from p2p_mesh.errors import RequestError
from p2p_mesh.front.tools import function_name
from tests.plugins.llama_cpp.chat.cases import PARIS, TEMPLATES, Case, parser, read

SPECIALS = ("<s>", "</s>", "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>",
            "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
            "<|START_THINKING|>", "<|END_THINKING|>", "<|START_ACTION|>", "<|END_ACTION|>",
            "<|START_RESPONSE|>", "<|END_RESPONSE|>")  # fmt: skip
"""Control tokens; bytes follow."""


class Letters:
    """A vocabulary of bytes, and of the control tokens."""

    eos_token_id = 1
    bos_token_id = 0
    tokens = [*(text.encode() for text in SPECIALS), *(bytes([byte]) for byte in range(256))]  # noqa: RUF012
    special_token_ids = list(range(len(SPECIALS)))  # noqa: RUF012

    def __call__(self, text: bytes) -> list[int]:
        return [len(SPECIALS) + byte for byte in text]


VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Letters()))


def special(text: str) -> int | None:
    return SPECIALS.index(text) if text in SPECIALS else None


def tokens(text: str) -> list[int]:
    found: list[int] = []
    while text:
        mark = next((mark for mark in SPECIALS if text.startswith(mark)), None)
        found += [SPECIALS.index(mark)] if mark else Letters()(text[0].encode())
        text = text[len(mark or text[0]) :]
    return found


def takes(form: Format, wanted: Wanted, text: str) -> bool:
    """Whether the grammar takes the text, whole."""
    rules = grammar(form, wanted, special)
    assert rules is not None
    matcher = llguidance.LLMatcher(VOCABULARY, rules, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    given = tokens(text)
    return matcher.try_consume_tokens(given) == len(given) and bool(matcher.is_accepting())


STRICT: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = (Tool(name="weather", parameters=STRICT, strict=True),)
BOTH = (*WEATHER, Tool(name="add"))
CITY = '{"city": "Paris"}'
SPELLED = {
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>',
    "qwen3": f'<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>',
    "r1": f"Hm.</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{CITY}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "qwen-xml": "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
    "</function>\n</tool_call>",
    "llama": f'{{"name": "weather", "parameters": {CITY}}}',
    "mistral-array": f'[TOOL_CALLS][{{"name": "weather", "arguments": {CITY}}}]',
    "mistral": f"[TOOL_CALLS]weather[ARGS]{CITY}",
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
    "deepseek": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{CITY}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "harmony": f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{CITY}",
    "command-r": f'<|START_ACTION|>[\n    {{"tool_name": "weather", "parameters": {CITY}}}\n]'
    "<|END_ACTION|>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
    f"<|tool_call_argument_begin|>{CITY}<|tool_call_end|><|tool_calls_section_end|>",
    "nemotron": f'<TOOLCALL>[{{"name": "weather", "arguments": {CITY}}}]</TOOLCALL>',
    "functionary": f"<function=weather>{CITY}</function>",
    "minimax": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Paris'
    "</parameter>\n</invoke>\n</minimax:tool_call>",
    "dsml": '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city">Paris'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    "json": f'<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>',
}  # fmt: skip


NAME = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize("family", SPELLED)
def test_a_demanded_call_is_taken_and_read(family: str) -> None:
    wanted = Wanted(tools=BOTH, required=True)
    assert takes(tell(TEMPLATES[family]), wanted, SPELLED[family])
    answer = read(parser(Case(family, "")), SPELLED[family])
    assert (answer.content, [name for name, _ in answer.calls]) == ("", ["weather"])
    assert json.loads(answer.calls[0][1]) == PARIS


@pytest.mark.parametrize("family", SPELLED)
def test_any_name_that_the_api_takes_is_written_and_read(family: str) -> None:
    name = "mcp/a.b:c-d_9"
    assert function_name(name, "name") == name
    tool = Tool(name=name, parameters=STRICT)
    check_tools((tool,))
    spelled = SPELLED[family].replace("weather", name)
    assert takes(tell(TEMPLATES[family]), Wanted(tools=(tool,), required=True), spelled)
    form = tell(TEMPLATES[family])
    reader = Harmony((tool,)) if family == "harmony" else Marked(form, (tool,))
    assert read(reader, spelled).calls[0][0] == name


@pytest.mark.parametrize("values", [5, [], [5, None], {"a": 1}, "text"])
def test_an_enum_that_no_string_is_in_is_refused(values: Any) -> None:
    parameters = {"properties": {"city": {"type": "string", "enum": values}}}
    wanted = Wanted(tools=(Tool(name="weather", parameters=parameters),), required=True)
    with pytest.raises(RequestError, match="the parameters of weather") as caught:
        grammar(tell(TEMPLATES["qwen-xml"]), wanted, special)
    assert caught.value.param == "tools"


def test_an_enum_of_strings_and_others_takes_its_strings() -> None:
    parameters = {"properties": {"city": {"type": "string", "enum": ["Paris", None, 5]}},
                  "required": ["city"]}  # fmt: skip
    wanted = Wanted(tools=(Tool(name="weather", parameters=parameters),), required=True)
    form = tell(TEMPLATES["qwen-xml"])
    assert takes(form, wanted, SPELLED["qwen-xml"])
    assert not takes(form, wanted, SPELLED["qwen-xml"].replace("Paris", "5"))


@pytest.mark.parametrize("family", SPELLED)
def test_a_demanded_call_cannot_be_something_else(family: str) -> None:
    form, wanted = tell(TEMPLATES[family]), Wanted(tools=BOTH, required=True)
    assert not takes(form, wanted, "Hello.")
    assert not takes(form, wanted, SPELLED[family].replace("weather", "wetter"))
    assert not takes(form, wanted, SPELLED[family].replace("city", "town"))


def test_reasoning_may_come_first() -> None:
    wanted = Wanted(tools=BOTH, required=True)
    call = SPELLED["qwen3"]
    assert takes(tell(TEMPLATES["qwen3"]), wanted, f"<think>\nHm < h.\n</think>\n\n{call}")
    assert takes(tell(TEMPLATES["mistral"]), wanted, "[THINK]Hm.[/THINK]" + SPELLED["mistral"])
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert takes(tell(TEMPLATES["harmony"]), wanted, thought + SPELLED["harmony"])


def test_reasoning_that_the_template_opened_must_end() -> None:
    opened = Wanted(tools=BOTH, required=True, opened=True)
    call = SPELLED["qwen3"]
    assert takes(tell(TEMPLATES["qwen3"]), opened, f"Hm.</think>\n\n{call}")
    assert not takes(tell(TEMPLATES["qwen3"]), opened, call)
    closed = Wanted(tools=BOTH, required=True, closed=True)
    assert takes(tell(TEMPLATES["qwen3"]), closed, call)
    assert not takes(tell(TEMPLATES["qwen3"]), closed, f"<think>Hm.</think>{call}")


def test_calls_are_several_unless_one_is_wanted() -> None:
    two = "\n".join((SPELLED["hermes"], SPELLED["hermes"]))
    form = tell(TEMPLATES["hermes"])
    assert takes(form, Wanted(tools=BOTH, required=True), two)
    assert not takes(form, Wanted(tools=BOTH, required=True, single=True), two)


def test_arguments_follow_the_schema() -> None:
    for family in ("hermes", "mistral", "harmony"):
        text = SPELLED[family].replace('"Paris"', '"Paris", "days": 3')
        wanted = Wanted(tools=WEATHER, required=True)
        assert takes(tell(TEMPLATES[family]), wanted, text)
        assert not takes(tell(TEMPLATES[family]), wanted, text.replace("3", '"3"'))


def test_tags_follow_the_schema() -> None:
    more = "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3"
    text = SPELLED["glm"].replace("Paris", f'P<a> "r"{more}')
    wanted = Wanted(tools=WEATHER, required=True)
    assert takes(tell(TEMPLATES["glm"]), wanted, text)
    assert not takes(tell(TEMPLATES["glm"]), wanted, text.replace(">3", ">three"))


def test_a_tag_with_few_values_has_one_of_them() -> None:
    unit = {"type": "object", "properties": {"unit": {"type": "string", "enum": ["C", "F"]}}}
    wanted = Wanted(tools=(Tool(name="heat", parameters=unit),), required=True)
    text = "<tool_call>heat\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>"
    assert takes(tell(TEMPLATES["glm"]), wanted, text)
    assert not takes(tell(TEMPLATES["glm"]), wanted, text.replace("C", "K"))


def test_content_follows_a_schema() -> None:
    wanted = Wanted(schema=NAME)
    assert takes(tell(""), wanted, '{"name": "Ann"}')
    assert not takes(tell(""), wanted, "Ann")
    assert takes(tell(TEMPLATES["qwen3"]), wanted, '<think>Hm.</think>\n\n{"name": "Ann"}')
    final = '<|channel|>final<|message|>{"name": "Ann"}'
    assert takes(tell(TEMPLATES["harmony"]), wanted, final)
    response = '<|START_RESPONSE|>{"name": "Ann"}<|END_RESPONSE|>'
    assert takes(tell(TEMPLATES["command-r"]), wanted, response)


def test_with_a_schema_and_tools_an_answer_is_one_or_the_other() -> None:
    wanted = Wanted(tools=BOTH, schema=NAME)
    assert takes(tell(TEMPLATES["hermes"]), wanted, '{"name": "Ann"}')
    assert takes(tell(TEMPLATES["hermes"]), wanted, SPELLED["hermes"])
    assert not takes(tell(TEMPLATES["hermes"]), wanted, "Hello.")


@pytest.mark.parametrize("family", ["hermes", "mistral", "glm", "deepseek", "functionary"])
def test_strict_tools_leave_text_free_and_hold_calls(family: str) -> None:
    form, wanted = tell(TEMPLATES[family]), Wanted(tools=WEATHER)
    assert takes(form, wanted, "Hello <b> [x] {y}.")
    assert takes(form, wanted, SPELLED[family])
    assert takes(form, wanted, "So.\n" + SPELLED[family])
    assert not takes(form, wanted, "So." + SPELLED[family].replace("city", "town"))


def test_strict_tools_hold_nothing_where_calls_have_no_marker() -> None:
    for family in ("llama", "harmony", "command-r"):
        assert grammar(tell(TEMPLATES[family]), Wanted(tools=WEATHER), special) is None


def test_nothing_demanded_is_no_grammar() -> None:
    assert grammar(tell(""), Wanted(tools=(Tool(name="add"),)), special) is None
    assert grammar(tell(""), Wanted(), special) is None


def test_control_tokens_are_written_by_their_number() -> None:
    rules = grammar(tell(TEMPLATES["mistral"]), Wanted(tools=BOTH, required=True), special)
    assert rules is not None
    assert "<[7]>" in rules
    assert "TOOL_CALLS" not in rules


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
          "additionalProperties": False}  # fmt: skip


def test_spaces_between_tokens_are_few() -> None:
    form = tell("{{ messages }}")
    for text in ('{"a":1}', '{"a": 1}', '{\n  "a": 1\n}', '{\n\t"a": 1\n}'):
        assert takes(form, Wanted(schema=SCHEMA), text)
    for text in ('{  "a": 1}', '{\n\n"a": 1}', "{\n" + 30 * " " + '"a": 1}'):
        assert not takes(form, Wanted(schema=SCHEMA), text)


def test_keys_that_nobody_named_are_not_made_up() -> None:
    open_ = {key: value for key, value in SCHEMA.items() if key != "additionalProperties"}
    assert not takes(tell("{{ messages }}"), Wanted(schema=open_), '{"a": 1, "b": 2}')
    said = {**open_, "additionalProperties": True}
    assert takes(tell("{{ messages }}"), Wanted(schema=said), '{"a": 1, "b": 2}')


def test_a_client_does_not_say_how_json_is_written() -> None:
    own = {**SCHEMA, "x-guidance": {"whitespace_pattern": "x+"}}
    assert not takes(tell("{{ messages }}"), Wanted(schema=own), '{xxx"a":1}')
    assert takes(tell("{{ messages }}"), Wanted(schema=own), '{"a": 1}')
