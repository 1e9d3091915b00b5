"""How families of models write reasoning and tool calls: a table, and who is told as what.

A family is told from the text of its chat template, never from a model's name. The formats are
facts that were read off the templates which come with llama.cpp (models/templates).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

NAME = r"[A-Za-z0-9_.:/-]{1,128}"
"""What a tool may be called: as the HTTP API has it, with the letters of MCP's tools."""
NAME_PATTERN = re.compile(NAME)


@dataclass(frozen=True, slots=True)
class Thought:
    """The markers around reasoning, which comes first in an answer."""

    opens: str
    closes: str
    assumed: bool = False
    """The template never opens it, only takes it out again: the model may leave `opens` out."""


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments that are written as a tag for each, not as JSON."""

    key: re.Pattern[str]
    """What comes before a value; group 1 is the parameter's name."""
    value_ends: str
    ends: re.Pattern[str]
    """What comes after the last value."""
    lines: bool
    """A value stands on lines of its own."""
    spelled: tuple[str, str, str]
    """Before a parameter's name, after it, and after the value."""


@dataclass(frozen=True, slots=True)
class Calls:
    """How tool calls are written."""

    spelled: tuple[str, str, str]
    """Before a tool's name, between name and arguments, and after the arguments."""
    opens: tuple[str, ...] = ()
    """Where calls begin, in the middle of content."""
    heads: tuple[re.Pattern[str], ...] = ()
    """From there up to the arguments; group 1 is the name."""
    objects: bool = False
    """A call may be a JSON object with a name and arguments, or stand in an array of such."""
    bare: bool = False
    """An answer that begins with such an object, of a tool that is there, is a call too."""
    again: tuple[str, ...] = ()
    """Where a call begins, as a part of its head."""
    skips: tuple[str, ...] = ()
    """What may stand after a call."""
    ends: tuple[str, ...] = ()
    """What ends a set of calls, and the answer."""
    tags: Tags | None = None
    around: tuple[str, str, str] = ("", "\n", "")
    """Spelled before the first call, between two, and after the last."""


@dataclass(frozen=True, slots=True)
class Format:
    family: str
    calls: Calls
    thought: Thought | None = None
    around: tuple[str, str] = ("", "")
    """Spelled before and after content; no part of it."""
    harmony: bool = False
    """An answer is several messages with headers; `calls` only tells how to spell one."""

    def marks(self, tools: bool) -> frozenset[str]:
        """The texts that mean something to a parser, with tools or without, and may be control
        tokens.
        """
        if self.harmony:
            return HARMONY_MARKS
        texts = [*self.around]
        if self.thought is not None:
            texts += (self.thought.opens, self.thought.closes)
        if tools:
            calls = self.calls
            texts += (*calls.opens, *calls.again, *calls.skips, *calls.ends)
            texts += (*calls.spelled, *calls.around, *(calls.tags.spelled if calls.tags else ()))
        return frozenset(mark for text in texts for mark in SPECIAL.findall(text))


SPECIAL = re.compile(r"<[|｜][^<>|｜]+[|｜]>|</?[\w:]+>|\[/?[A-Z_]+\]")
HARMONY_MARKS = frozenset(
    f"<|{word}|>" for word in ("start", "channel", "constrain", "message", "end", "call", "return")
)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text.replace("NAME", NAME))


def _objects(opens: str, closes: str) -> Calls:
    """JSON objects, each between two markers."""
    return Calls(
        objects=True,
        opens=(opens,),
        skips=(closes,),
        spelled=(f'{opens}\n{{"name": "', '", "arguments": ', f"}}\n{closes}"),
    )


def _array(opens: str, closes: str) -> Calls:
    """An array of such objects between two markers, or behind one."""
    return Calls(
        objects=True,
        opens=(opens,),
        skips=(closes,),
        spelled=_OBJECT,
        around=(f"{opens}[", ", ", f"]{closes}"),
    )


_OBJECT = ('{"name": "', '", "arguments": ', "}")

_HERMES = _objects("<tool_call>", "</tool_call>")
FALLBACK = Calls(
    objects=True,
    bare=True,
    opens=("<tool_call>",),
    skips=("</tool_call>",),
    spelled=('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>"),
)
"""For a template that says nothing of calls: what most models have seen somewhere."""

_PARAMETERS = Tags(
    key=re.compile(r"\s*<parameter=([^<>\n]{1,256})>"),
    value_ends="</parameter>",
    ends=re.compile(r"\s*</function>"),
    lines=True,
    spelled=("<parameter=", ">\n", "\n</parameter>\n"),
)


def _functions(opens: str, closes: str) -> Calls:
    return Calls(
        opens=(opens,),
        again=("<function=",),
        heads=(_pattern(r"\s*<function=(NAME)>"),),
        tags=_PARAMETERS,
        skips=(closes,),
        spelled=(f"{opens}\n<function=", ">\n", f"</function>\n{closes}"),
    )


_INVOKE = Calls(
    opens=("<minimax:tool_call>",),
    again=("<invoke name=",),
    heads=(_pattern(r'\s*<invoke name="(NAME)">'),),
    tags=Tags(
        key=re.compile(r'\s*<parameter name="([^"\n]{1,256})">'),
        value_ends="</parameter>",
        ends=re.compile(r"\s*</invoke>"),
        lines=False,
        spelled=('<parameter name="', '">', "</parameter>\n"),
    ),
    ends=("</minimax:tool_call>",),
    spelled=('<invoke name="', '">\n', "</invoke>"),
    around=("<minimax:tool_call>\n", "\n", "\n</minimax:tool_call>"),
)
_DSML_TAGS = Tags(
    key=re.compile(r'\s*<｜DSML｜parameter name="([^"\n]{1,256})"(?: string="(?:true|false)")?>'),
    value_ends="</｜DSML｜parameter>",
    ends=re.compile(r"\s*</｜DSML｜invoke>"),
    lines=False,
    spelled=('<｜DSML｜parameter name="', '">', "</｜DSML｜parameter>\n"),
)


def _dsml(word: str) -> Calls:
    return Calls(
        opens=(f"<｜DSML｜{word}>",),
        again=("<｜DSML｜invoke name=",),
        heads=(_pattern(r'\s*<｜DSML｜invoke name="(NAME)">'),),
        tags=_DSML_TAGS,
        ends=(f"</｜DSML｜{word}>",),
        spelled=('<｜DSML｜invoke name="', '">\n', "</｜DSML｜invoke>"),
        around=(f"<｜DSML｜{word}>\n", "\n", f"\n</｜DSML｜{word}>"),
    )


_FUNCTIONARY = Calls(
    again=("<function=",),
    heads=(_pattern(r"\s*<function=(NAME)>\s*(?=\{)"),),
    skips=("</function>",),
    spelled=("<function=", ">", "</function>"),
    around=("", "", ""),
)
_GLM = Calls(
    opens=("<tool_call>",),
    heads=(_pattern(r"\s*(NAME)\s*(?=<arg_key>|</tool_call>)"),),
    tags=Tags(
        key=re.compile(r"\s*<arg_key>([^<>\n]{1,256})</arg_key>\s*<arg_value>"),
        value_ends="</arg_value>",
        ends=re.compile(r"\s*</tool_call>"),
        lines=False,
        spelled=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
    ),
    spelled=("<tool_call>", "\n", "</tool_call>"),
)
_LLAMA = Calls(
    objects=True,
    bare=True,
    opens=("<|python_tag|>",),
    skips=(";",),
    spelled=('{"name": "', '", "parameters": ', "}"),
    around=("", "; ", ""),
)
_MISTRAL = Calls(
    objects=True,
    opens=("[TOOL_CALLS]",),
    heads=(_pattern(r"\s*(NAME)\s*(?:\[CALL_ID\][^\[]{0,64})?\[ARGS\]\s*(?=\{)"),),
    spelled=("[TOOL_CALLS]", "[ARGS]", ""),
    around=("", "", ""),
)
_MISTRAL_ARRAY = Calls(
    objects=True,
    opens=_MISTRAL.opens,
    heads=_MISTRAL.heads,
    spelled=_OBJECT,
    around=("[TOOL_CALLS][", ", ", "]"),
)
_COHERE = Calls(
    objects=True,
    opens=("<|START_ACTION|>",),
    ends=("<|END_ACTION|>",),
    spelled=('{"tool_name": "', '", "parameters": ', "}"),
    around=("<|START_ACTION|>[\n    ", ",\n    ", "\n]<|END_ACTION|>"),
)
_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END, _SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_DEEPSEEK_HEADS = (
    _pattern(rf"\s*(?:{_CALL_BEGIN})?\s*\w+{_SEP}(NAME)\s*\n\s*```(?:json)?\s*(?=\{{)"),
    _pattern(rf"\s*(?:{_CALL_BEGIN})?\s*(NAME){_SEP}\s*(?=\{{)"),
)
_DEEPSEEK = Calls(
    opens=(_CALLS_BEGIN,),
    again=(_CALL_BEGIN,),
    heads=_DEEPSEEK_HEADS,
    skips=("```", _CALL_END),
    ends=(_CALLS_END,),
    spelled=(_CALL_BEGIN, _SEP, _CALL_END),
    around=(_CALLS_BEGIN, "", _CALLS_END),
)
_DEEPSEEK_FENCED = Calls(
    opens=_DEEPSEEK.opens,
    again=_DEEPSEEK.again,
    heads=_DEEPSEEK_HEADS,
    skips=_DEEPSEEK.skips,
    ends=_DEEPSEEK.ends,
    spelled=(f"{_CALL_BEGIN}function{_SEP}", "\n```json\n", f"\n```{_CALL_END}"),
    around=(_CALLS_BEGIN, "\n", _CALLS_END),
)
_KIMI = Calls(
    opens=("<|tool_calls_section_begin|>",),
    again=("<|tool_call_begin|>",),
    heads=(
        re.compile(
            rf"\s*<\|tool_call_begin\|>\s*(?:functions\.)?({NAME}?)(?::\d+)?"
            r"\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
        ),
    ),
    skips=("<|tool_call_end|>",),
    ends=("<|tool_calls_section_end|>",),
    spelled=(
        "<|tool_call_begin|>functions.",
        ":0<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ),
    around=("<|tool_calls_section_begin|>", "", "<|tool_calls_section_end|>"),
)
_HARMONY = Calls(
    spelled=("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""),
    around=("", "", ""),
)

_FAMILIES: tuple[tuple[str, tuple[str, ...], Calls], ...] = (
    ("harmony", ("<|channel|>", "<|message|>", "<|start|>"), _HARMONY),
    ("command-r", ("<|START_ACTION|>",), _COHERE),
    ("deepseek", (_CALLS_BEGIN, "```json"), _DEEPSEEK_FENCED),
    ("deepseek", (_CALLS_BEGIN,), _DEEPSEEK),
    ("dsml", ("｜DSML｜", "function_calls>"), _dsml("function_calls")),
    ("dsml", ("｜DSML｜", "tool_calls>"), _dsml("tool_calls")),
    ("kimi", ("<|tool_calls_section_begin|>",), _KIMI),
    ("mistral", ("[TOOL_CALLS]", "[ARGS]"), _MISTRAL),
    ("mistral", ("[TOOL_CALLS]",), _MISTRAL_ARRAY),
    ("glm", ("<tool_call>", "<arg_key>"), _GLM),
    ("minimax", ("<minimax:tool_call>", "<invoke name="), _INVOKE),
    ("seed", ("<seed:tool_call>", "<function=", "<parameter="),
     _functions("<seed:tool_call>", "</seed:tool_call>")),
    ("qwen-xml", ("<tool_call>", "<function=", "<parameter="),
     _functions("<tool_call>", "</tool_call>")),
    ("functionary", ("<function=", "</function>"), _FUNCTIONARY),
    ("tool-calls", ("<tool_calls>[", "</tool_calls>"), _array("<tool_calls>", "</tool_calls>")),
    ("tool-calls", ("<tool_calls>\\n", "</tool_calls>"), _objects("<tool_calls>", "</tool_calls>")),
    ("nemotron", ("<TOOLCALL>", "</TOOLCALL>"), _array("<TOOLCALL>", "</TOOLCALL>")),
    ("granite", ("<|tool_call|>",), _array("<|tool_call|>", "")),
    ("functools", ("functools[",), _array("functools", "")),
    ("hermes", ("<tool_call>", "</tool_call>", '"name'), _HERMES),
    ("hermes", ("<tool_call>", "</tool_call>", '\\"name\\"'), _HERMES),
    ("llama", ("<|python_tag|>", '"parameters"'), _LLAMA),
    ("llama", ("<|start_header_id|>", '"parameters"'), _LLAMA),
)  # fmt: skip

_THOUGHTS = (
    Thought("<|START_THINKING|>", "<|END_THINKING|>"),
    Thought("[THINK]", "[/THINK]"),
    Thought("<seed:think>", "</seed:think>"),
    Thought("<think>", "</think>"),
)
_HARMONY_THOUGHT = Thought("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
_RESPONSE = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
_FINAL = ("<|channel|>final<|message|>", "")


def tell(template: str) -> Format:
    """The format of a chat template's answers."""
    told = ((family, calls) for family, texts, calls in _FAMILIES
            if all(text in template for text in texts))  # fmt: skip
    family, calls = next(told, ("json", FALLBACK))
    if family == "harmony":
        return Format(family, calls, _HARMONY_THOUGHT, _FINAL, harmony=True)
    around = _RESPONSE if all(text in template for text in _RESPONSE) else ("", "")
    return Format(family, calls, _thought(template), around)


def _thought(template: str) -> Thought | None:
    for thought in _THOUGHTS:
        if thought.closes in template:
            assumed = thought.opens not in template
            return Thought(thought.opens, thought.closes, assumed)
    return None


def spell(calls: Calls, made: Sequence[tuple[str, str]]) -> str:
    """Calls, by name and JSON arguments, as a model of that family writes them."""
    if calls.tags is not None:
        calls = FALLBACK
    opens, between, closes = calls.spelled
    first, comma, last = calls.around
    return first + comma.join(opens + name + between + text + closes for name, text in made) + last
