"""Objects of a JSON schema that says nothing of further properties: they have none. Pure.

By the letter of JSON Schema such an object may have any keys besides those that are named, and a
small model under a grammar then makes some up to the end of its context. Nobody who names the
properties of an object means that; whoever does says `additionalProperties: true`.
"""

from __future__ import annotations

from typing import Any

_OPEN = frozenset({
    "$ref", "additionalProperties", "allOf", "anyOf", "else", "if", "oneOf", "patternProperties",
    "then", "unevaluatedProperties",
})  # fmt: skip
"""Keywords by which an object's keys are said elsewhere."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` where an object's properties are named. Parts
    of an `allOf` stay as they are: each sees the keys of the others.
    """
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key in _NAMED:
        if isinstance(named := schema.get(key), dict):
            found[key] = {name: closed(one) for name, one in named.items()}
    for key in _LISTED:
        if isinstance(listed := schema.get(key), list):
            found[key] = [closed(one) for one in listed]
    for key in _SINGLE:
        if key in schema:
            found[key] = closed(schema[key])
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        found["additionalProperties"] = False
    return found
