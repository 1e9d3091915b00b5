"""Answers in the manner of each family, and what they mean. Our own making."""

# ruff: noqa: E501  answers stand in one piece, as models write them

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meshnode_llama_cpp.chat.format import Format, tell
from meshnode_llama_cpp.chat.harmony import Harmony
from meshnode_llama_cpp.chat.machine import Grown, Parser
from meshnode_llama_cpp.chat.marked import Marked

from p2p_mesh.core.records import Tool

TOOLS = (
    Tool(
        name="weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "where": {"type": "object"},
            },
        },
    ),
    Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "number"}}}),
)

TEMPLATES = {
    "hermes": '<tool_call>{"name": ""}</tool_call>',
    "qwen3": '<think></think><tool_call>{"name": ""}</tool_call>',
    "r1": "</think><｜tool▁calls▁begin｜>```json",
    "qwen-xml": "<tool_call><function=x><parameter=y></tool_call>",
    "llama": '<|python_tag|>"parameters"',
    "mistral-array": "[TOOL_CALLS]",
    "mistral": "[THINK][/THINK][TOOL_CALLS]x[ARGS]",
    "glm": "<think></think><tool_call><arg_key></tool_call>",
    "deepseek": "<think></think><｜tool▁calls▁begin｜>",
    "harmony": "<|start|><|channel|><|message|>",
    "command-r": "<|START_THINKING|><|END_THINKING|><|START_ACTION|><|START_RESPONSE|><|END_RESPONSE|>",
    "kimi": "<|tool_calls_section_begin|>",
    "nemotron": "<TOOLCALL></TOOLCALL>",
    "functionary": "<function=x></function>",
    "minimax": '<minimax:tool_call><invoke name="x">',
    "dsml": "｜DSML｜tool_calls>",
    "json": "",
}


@dataclass(frozen=True)
class Case:
    family: str
    text: str
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Names, and arguments: values, or a text where they are cut off."""
    opened: bool = False
    tools: bool = True


@dataclass
class Answer:
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, grown: Grown) -> None:
        self.content += grown.text
        self.reasoning += grown.reasoning
        for call in grown.calls:
            if call.name:
                assert call.index == len(self.calls)
                self.calls.append([call.name, ""])
            self.calls[call.index][1] += call.arguments


def form(family: str) -> Format:
    return tell(TEMPLATES[family])


def parser(case: Case, *, single: bool = False) -> Parser:
    tools = TOOLS if case.tools else ()
    if case.family == "harmony":
        return Harmony(tools, single=single)
    return Marked(form(case.family), tools, opened=case.opened, single=single)


def read(parser: Parser, *pieces: str) -> Answer:
    answer = Answer()
    for piece in pieces:
        answer.add(parser.push(piece))
    answer.add(parser.finish())
    return answer


PARIS = {"city": "Paris"}
DEEP = {"where": {"at": [1, {"x": "}]"}], "say": 'a "b" \\ é 😀'}}
DEEP_TEXT = '{"where": {"at": [1, {"x": "}]"}], "say": "a \\"b\\" \\\\ é 😀"}}'
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1.5}}\n</tool_call>'
BOTH: list[tuple[str, Any]] = [("weather", PARIS), ("add", {"a": 1.5})]
ONE: list[tuple[str, Any]] = [("weather", PARIS)]
XML = "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
XML_ADD = "<tool_call>\n<function=add>\n<parameter=a>\n1.5\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>"
GLM_ADD = "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1.5</arg_value>\n</tool_call>"
DS, DSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DC, DCE, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
DEEPSEEK = f'{DC}weather{SEP}{{"city": "Paris"}}{DCE}'
FENCED = f'{DC}function{SEP}weather\n```json\n{{"city": "Paris"}}\n```{DCE}'
FENCED_ADD = f'{DC}function{SEP}add\n```json\n{{"a": 1.5}}\n```{DCE}'
TO = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ACTION = '{"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Paris"}}'
ACTION_ADD = '{"tool_call_id": "1", "tool_name": "add", "parameters": {"a": 1.5}}'
KIMI = (
    "<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris"}<|tool_call_end|>'
)
INVOKE = '<invoke name="weather">\n<parameter name="city">Paris</parameter>\n</invoke>'

CASES = [
    Case("hermes", "Hello, world! 1 < 2 & a[0] {x}\n", "Hello, world! 1 < 2 & a[0] {x}\n"),
    Case("hermes", f"Let me see.\n{HERMES}", "Let me see.", calls=ONE),
    Case("hermes", f"{HERMES}\n{ADD}", calls=BOTH),
    Case("hermes", f"{HERMES}\n\nThat is it.", "That is it.", calls=ONE),
    Case("hermes", HERMES.replace('{"city": "Paris"}', DEEP_TEXT), calls=[("weather", DEEP)]),
    Case("hermes", '<tool_call>{"name":"add","arguments":{}}</tool_call>', calls=[("add", {})]),
    Case("hermes", '<tool_call>{"arguments": {"a": 2}, "name": "add"}</tool_call>',
         calls=[("add", {"a": 2})]),
    Case("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call>',
         calls=[("add", {"a": 2})]),
    Case("hermes", '<tool_call>\n```json\n{"name": "add", "arguments": {"a": 2}}', calls=[
         ("add", {"a": 2})]),
    Case("hermes", '<tool_call>[{"name": "weather", "arguments": {"city": "Paris"}},\n'
         '{"name": "add", "arguments": {"a": 1.5}}]</tool_call>', calls=BOTH),
    Case("hermes", '<tool_call>{"name": "add", "arguments": {"a": 2}\n</tool_call>',
         calls=[("add", {"a": 2})]),
    Case("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "a\nb\\d"}}',
         calls=[("weather", {"city": "a\nb\\d"})]),
    Case("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Par',
         calls=[("weather", '{"city": "Par')]),
    Case("hermes", "The tag <tool_call> is a tag.", "The tag <tool_call> is a tag."),
    Case("hermes", 'So: <tool_call>{"name": 7}</tool_call>', 'So: <tool_call>{"name": 7}</tool_call>'),
    Case("hermes", 'So: <tool_call>{"name": "x", ', 'So: <tool_call>{"name": "x", '),
    Case("hermes", "a <tool_cal", "a <tool_cal"),
    Case("hermes", "a <tool_cal b", "a <tool_cal b"),
    Case("hermes", HERMES, HERMES, tools=False),
    Case("hermes", f"{{[</think>{HERMES}", "{[</think>", calls=ONE),
    Case("qwen3", "<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm."),
    Case("qwen3", "\n<think>a</think>b", "b", "a"),
    Case("qwen3", f"<think>\nI <tool_call> it.\n\n</think>\n\n{HERMES}", "", "I <tool_call> it.", ONE),
    Case("qwen3", "Hm.\n</think>\n\nYes.", "Yes.", "Hm.", opened=True),
    Case("qwen3", "<think>Hm.</think>Yes.", "Yes.", "Hm.", opened=True),
    Case("qwen3", "<thi", reasoning="<thi", opened=True),
    Case("qwen3", "Yes, <think> it.", "Yes, <think> it."),
    Case("qwen3", "<think>I do </thi nk", "", "I do </thi nk"),
    Case("qwen3", "<think>Hm.</think>\n<tool", "<tool", "Hm."),
    Case("qwen3", " <b", " <b"),
    Case("qwen3", "<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm.", tools=False),
    Case("r1", "Hm.\n</think>\n\nYes.", "Yes.", "Hm."),
    Case("r1", f"<think>Hm.</think>{DS}{FENCED}\n{FENCED_ADD}{DSE}", "", "Hm.", BOTH),
    Case("r1", f"Hm.</think>So.{DS}{FENCED}{DSE}", "So.", "Hm.", ONE),
    Case("qwen-xml", "a < b <function> c", "a < b <function> c"),
    Case("qwen-xml", f"So.\n{XML}\n{XML_ADD}", "So.", calls=BOTH),
    Case("qwen-xml", "<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>",
         calls=ONE),
    Case("qwen-xml", XML.replace("Paris", "\nif a < b:\n  \"é\" </p\n"),
         calls=[("weather", {"city": '\nif a < b:\n  "é" </p\n'})]),
    Case("qwen-xml", "<tool_call><function=weather><parameter=city>12</parameter><parameter=days>\n"
         '3\n</parameter><parameter=where>{"x": [1]}</parameter><parameter=z>true</parameter>'
         "</function>", calls=[("weather", {"city": "12", "days": 3, "where": {"x": [1]}, "z": True})]),
    Case("qwen-xml", "<tool_call>\n<function=add>\n</function>\n</tool_call>", calls=[("add", {})]),
    Case("qwen-xml", "<tool_call>\n<function=weather>\n<parameter=city>\nPar",
         calls=[("weather", '{"city": "Par')]),
    Case("qwen-xml", "<tool_call>\n<function=weather>\nno tag", "\nno tag", calls=[("weather", {})]),
    Case("qwen-xml", "a <function=", "a <function="),
    Case("qwen-xml", "<tool_call> is a tag" + "." * 600, "<tool_call> is a tag" + "." * 600),
    Case("glm", f"<think>Hm.</think>\nSo.\n{GLM}\n{GLM_ADD}", "So.", "Hm.", BOTH),
    Case("glm", "<tool_call>add\n</tool_call>", calls=[("add", {})]),
    Case("glm", "<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
         '<arg_key>where</arg_key>\n<arg_value>{"é": null}</arg_value>\n</tool_call>',
         calls=[("weather", {"days": 3, "where": {"é": None}})]),
    Case("glm", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a\nb",
         calls=[("weather", '{"city": "a\\nb')]),
    Case("glm", "<tool_call>not one", "<tool_call>not one"),
    Case("llama", "Hello {name}", "Hello {name}"),
    Case("llama", '{"name": "weather", "parameters": {"city": "Paris"}}', calls=ONE),
    Case("llama", '{"name": "weather", "parameters": {"city": "Paris"}}; '
         '{"name": "add", "parameters": {"a": 1.5}}', calls=BOTH),
    Case("llama", '<|python_tag|>{"type": "function", "name": "weather", "parameters": '
         '{"city": "Paris"}}', calls=ONE),
    Case("llama", '{"type": "function", "function": "add", "parameters": {"a": 1}}',
         calls=[("add", {"a": 1})]),
    Case("llama", '{"type": "function", "function": {"name": "add", "parameters": {"a": 1}}}',
         calls=[("add", {"a": 1})]),
    Case("llama", '{"name": "other", "parameters": {"a": 1}}',
         '{"name": "other", "parameters": {"a": 1}}'),
    Case("llama", '{"answer": 5}', '{"answer": 5}'),
    Case("llama", '{"name": "Ann", "age": 5} is a person', '{"name": "Ann", "age": 5} is a person'),
    Case("llama", "[1, 2]", "[1, 2]"),
    Case("llama", '{"na', '{"na'),
    Case("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)"),
    Case("mistral-array", "Hello [TOOL", "Hello [TOOL"),
    Case("mistral-array", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": '
         '"abcdefghi"}, {"name": "add", "arguments": {"a": 1.5}}]', calls=BOTH),
    Case("mistral-array", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Pa',
         calls=[("weather", '{"city": "Pa')]),
    Case("mistral", '[THINK]Hm.[/THINK]So.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}'
         '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"a": 1.5}', "So.", "Hm.", BOTH),
    Case("mistral", "[THINK]x [TOOL_CALLS]y[ARGS]{} z[/THINK]Yes [1]", "Yes [1]",
         "x [TOOL_CALLS]y[ARGS]{} z"),
    Case("mistral", "[TOOL_CALLS]weather", "[TOOL_CALLS]weather"),
    Case("deepseek", f"So.{DS}{DEEPSEEK}{DC}add{SEP}{{\"a\": 1.5}}{DCE}{DSE}", "So.", calls=BOTH),
    Case("deepseek", f"Hm.</think>{DS}{DEEPSEEK}{DSE}", "", "Hm.", ONE, opened=True),
    Case("deepseek", f"{DS}{DC}weather{SEP}{DEEP_TEXT}{DCE}{DSE}", calls=[("weather", DEEP)]),
    Case("deepseek", f"{DS} or not", f"{DS} or not"),
    Case("deepseek", "a <｜tool▁c", "a <｜tool▁c"),
    Case("harmony", "<|channel|>final<|message|>Hello.<|return|>", "Hello."),
    Case("harmony", f"{THOUGHT}<|channel|>final<|message|>Yes <b>.", "Yes <b>.", "Hm."),
    Case("harmony", f'{THOUGHT}{TO}{{"city": "Paris"}}<|call|>', "", "Hm.", ONE),
    Case("harmony", ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Paris"}',
         calls=ONE),
    Case("harmony", f'{THOUGHT}<|channel|>commentary<|message|>So.<|end|><|start|>assistant{TO}'
         '{"city": "Paris"}<|end|><|start|>assistant to=functions.add<|channel|>commentary'
         '<|message|>{"a": 1.5}<|call|>', "So.", "Hm.", BOTH),
    Case("harmony", f'{TO}{{"city": "Pa', calls=[("weather", '{"city": "Pa')]),
    Case("harmony", "Hello without a header", "Hello without a header"),
    Case("harmony", "<|chan", "<|chan"),
    Case("harmony", "<|channel|>anal"),
    Case("harmony", "<|channel|>commentary to=python<|message|>print(1)", "print(1)"),
    Case("harmony", f'{TO}{{"city": 1}}', '{"city": 1}', tools=False),
    Case("harmony", f"{TO}none", "none", calls=[("weather", "")]),
    Case("command-r", "<|START_RESPONSE|>Hello <b>.<|END_RESPONSE|>", "Hello <b>."),
    Case("command-r", "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hi<|END_RESPONSE|>",
         "Hi", "Hm."),
    Case("command-r", f"<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>[\n    {ACTION},\n    "
         f"{ACTION_ADD}\n]<|END_ACTION|>", "", "Hm.", BOTH),
    Case("command-r", "<|START_THINKING|>Hm.<|END_THINKING|>Hi", "Hi", "Hm.", tools=False),
    Case("command-r", f"<|START_ACTION|>[{ACTION[:-10]}", calls=[("weather", '{"city":')]),
    Case("command-r", "1 <|START_ACT", "1 <|START_ACT"),
    Case("kimi", f"So.<|tool_calls_section_begin|>{KIMI}<|tool_calls_section_end|>", "So.", calls=ONE),
    Case("nemotron", '<TOOLCALL>[{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "add",'
         ' "arguments": {"a": 1.5}}]</TOOLCALL>', calls=BOTH),
    Case("functionary", '<function=weather>{"city": "Paris"}</function><function=add>{"a": 1.5}'
         "</function>", calls=BOTH),
    Case("functionary", "<function=weather> no", "<function=weather> no"),
    Case("minimax", f"So.\n<minimax:tool_call>\n{INVOKE}\n</minimax:tool_call>", "So.", calls=ONE),
    Case("dsml", '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" '
         'string="true">Paris</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>', calls=ONE),
    Case("json", "Plain {text}.", "Plain {text}."),
    Case("json", f"So.\n{HERMES}\n{ADD}", "So.", calls=BOTH),
    Case("json", '\n{"name": "weather", "arguments": {"city": "Paris"}}', calls=ONE),
    Case("json", '[{"name": "weather", "arguments": {"city": "Paris"}}, {"name": "add", "arguments": '
         '{"a": 1.5}}]', calls=BOTH),
    Case("json", '{"name": "nobody", "arguments": {}}', '{"name": "nobody", "arguments": {}}'),
]  # fmt: skip
