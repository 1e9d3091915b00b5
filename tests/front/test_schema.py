from typing import Any

import pytest

from p2p_mesh.errors import RequestError
from p2p_mesh.front.schema import response_schema

ANY: dict[str, Any] = {"type": "object"}
PERSON = {"type": "object", "properties": {"name": {"type": "string"}}}


def read(**given: Any) -> dict[str, Any] | None:
    return response_schema(given, "response_format")


def test_formats() -> None:
    assert read(type="text") is None
    assert read(type="json_object") == ANY
    assert read(type="json_object", schema=PERSON) == PERSON
    named = {"name": "person", "description": "x", "strict": True, "schema": PERSON}
    assert read(type="json_schema", json_schema=named) == PERSON
    assert read(type="json_schema", json_schema={"schema": {}}) == {}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "type"),
        ({"type": "grammar"}, "type"),
        ({"type": "text", "schema": {}}, "schema"),
        ({"type": "json_object", "schema": []}, "schema"),
        ({"type": "json_schema"}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
         "json_schema.name"),
        ({"type": "json_schema", "json_schema": {"strict": 1, "schema": {}}},
         "json_schema.strict"),
        ({"type": "json_schema", "json_schema": {"x": 1, "schema": {}}}, "json_schema.x"),
    ],
)  # fmt: skip
def test_wrong_format_is_named(given: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**given)
    assert caught.value.param == f"response_format.{param}"
