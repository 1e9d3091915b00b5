"""Arguments of calls that are written as text, whose type only the tool's schema knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]
"""For each tool, the schemas of its parameters by name."""

_WORDS = {"True": "true", "False": "false", "None": "null"}
_ANY = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})


def properties(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    found = parameters.get("properties")
    return found if isinstance(found, dict) else {}


def types(schema: Any) -> frozenset[str]:
    """The JSON types that a schema lets pass; all, where it does not say."""
    if not isinstance(schema, dict):
        return _ANY
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(filter(lambda one: isinstance(one, str), named))
    if isinstance(schema.get("enum"), list):
        return frozenset(map(_type, schema["enum"]))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return frozenset[str]().union(*map(types, schema[key]))
    return _ANY


def is_text(schema: Any) -> bool:
    """Whether a value can be nothing but a string."""
    return types(schema) == {"string"}


def spelled(text: str, schema: Any) -> str:
    """A value as JSON: what the schema's types take it for, else a string."""
    wanted = types(schema)
    if wanted != {"string"}:
        stripped = text.strip()
        stripped = _WORDS.get(stripped, stripped)
        try:
            value = json.loads(stripped, parse_constant=refuse)
        except (ValueError, RecursionError):
            return quoted(text)
        if _type(value) in wanted or (_type(value) == "integer" and "number" in wanted):
            return stripped
        if "string" not in wanted:
            return stripped  # of a wrong type, as the model wrote it
    return quoted(text)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def refuse(word: str) -> None:
    """What Python's parser takes for a number, and JSON does not have. Raises ValueError."""
    raise ValueError(f"{word} is no JSON")


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
