from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.chat.closing import closed

TEXT = {"type": "string"}


def test_an_object_with_named_properties_has_no_others() -> None:
    schema = {"type": "object", "properties": {"a": TEXT}}
    assert closed(schema) == {**schema, "additionalProperties": False}
    assert "additionalProperties" not in schema


def test_what_is_said_stays() -> None:
    for said in (True, False, TEXT):
        schema = {"type": "object", "properties": {"a": TEXT}, "additionalProperties": said}
        assert closed(schema) == schema


def test_an_object_without_properties_stays_open() -> None:
    assert closed({"type": "object"}) == {"type": "object"}
    assert closed(True) is True


def test_objects_inside_are_closed_too() -> None:
    inner = {"type": "object", "properties": {"a": TEXT}}
    shut = {**inner, "additionalProperties": False}
    schema = {
        "type": "array", "items": inner, "prefixItems": [inner], "$defs": {"x": inner},
        "anyOf": [inner, TEXT],
    }  # fmt: skip
    assert closed(schema) == {
        "type": "array", "items": shut, "prefixItems": [shut], "$defs": {"x": shut},
        "anyOf": [shut, TEXT],
    }  # fmt: skip


def test_parts_of_a_whole_see_each_others_keys() -> None:
    schema = {
        "properties": {"a": TEXT},
        "allOf": [{"type": "object", "properties": {"b": TEXT}}],
    }
    assert closed(schema) == schema


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["properties", "items", "anyOf", "a"]), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(json_values)
def test_nothing_that_is_no_schema_breaks_it(value: Any) -> None:
    assert closed(closed(value)) == closed(value)
