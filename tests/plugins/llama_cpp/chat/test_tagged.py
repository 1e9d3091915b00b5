from __future__ import annotations

import json

from meshnode_llama_cpp.chat.format import tell
from meshnode_llama_cpp.chat.tagged import Tagged

from tests.plugins.llama_cpp.chat.cases import TEMPLATES

FORM = tell(TEMPLATES["qwen-xml"]).calls.tags
assert FORM is not None


def tagged() -> Tagged:
    assert FORM is not None
    return Tagged(FORM, {"city": {"type": "string"}, "days": {"type": "integer"}})


def test_tags_become_an_object() -> None:
    text = (
        '\n<parameter=city>\n\n a "b"\n\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n</function>"
    )
    arguments, used = tagged().push(text + " more")
    assert json.loads(arguments) == {"city": '\n a "b"\n', "days": 3}
    assert used == len(text)


def test_the_end_of_a_string_waits() -> None:
    grown = tagged()
    assert grown.push("<parameter=city>\nPar\n</par") == ('{"city": "Par', 20)
    assert grown.push("\n</par</parameter>") == ('\\n</par"', 18)


def test_what_is_no_tag_closes_the_object() -> None:
    broken = tagged()
    assert broken.push("<parameter=city>a</parameter> b") == ('{"city": "a"}', 29)
    assert broken.broken


def test_a_name_without_end_closes_the_object() -> None:
    broken = tagged()
    assert broken.push("<parameter=" + "x" * 600) == ("{}", 0)
    assert broken.broken


def test_space_without_end_closes_the_object() -> None:
    text = " " * 600 + "</function>"
    assert tagged().push(text) == ("{}", 0)
