from __future__ import annotations

from typing import Any

import pytest
from meshnode_llama_cpp.chat.values import is_text, properties, spelled, types

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("text", "schema", "wanted"),
    [
        ("12", STRING, '"12"'),
        (" a\n", STRING, '" a\\n"'),
        ("12", INTEGER, "12"),
        (" 12\n", INTEGER, "12"),
        ("twelve", INTEGER, '"twelve"'),
        ("1", {"type": "number"}, "1"),
        ("true", {"type": "boolean"}, "true"),
        ("True", {"type": "boolean"}, "true"),
        ("None", {"type": ["string", "null"]}, "null"),
        ("12", {"type": ["string", "null"]}, '"12"'),
        ('{"a": [1]}', {"type": "object"}, '{"a": [1]}'),
        ('"é"', STRING, '"\\"é\\""'),
        ("NaN", {"type": "number"}, '"NaN"'),
        ("12", None, "12"),
        ("twelve é", None, '"twelve é"'),
        ("[" * 100_000, None, '"' + "[" * 100_000 + '"'),
        ("2", {"enum": ["1", "2"]}, '"2"'),
        ("2", {"anyOf": [STRING, INTEGER]}, "2"),
        ("1.5", INTEGER, "1.5"),
    ],
)
def test_the_schema_says_what_a_value_is(text: str, schema: Any, wanted: str) -> None:
    assert spelled(text, schema) == wanted


def test_only_strings_are_sure_to_be_text() -> None:
    assert is_text(STRING)
    assert is_text({"enum": ["a"]})
    assert not is_text({"type": ["string", "null"]})
    assert not is_text(None)
    assert not is_text({"$ref": "#/$defs/a"})


def test_types_are_told_from_values() -> None:
    values: list[Any] = [None, True, 1, 1.5, "a", [], {}]
    assert types({"enum": values}) == types(None)


def test_properties_that_are_none_are_empty() -> None:
    assert properties({"properties": 7}) == {}
