"""`response_format`: the JSON schema that an answer must follow, if any. Pure."""

from __future__ import annotations

import re
from typing import Any

from p2p_mesh.errors import RequestError
from p2p_mesh.http.body import Fields, boolean, mapping, text, word

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def response_schema(value: Any, name: str) -> dict[str, Any] | None:
    """Reads a `response_format`; None where any text will do."""
    fields = Fields(mapping(value, name), name)
    sort = fields.require("type", word("text", "json_object", "json_schema"))
    schema = None
    if sort == "json_object":  # with a schema, as llama-server takes it
        schema = fields.take("schema", mapping) or {"type": "object"}
    elif sort == "json_schema":
        schema = fields.require("json_schema", _json_schema)
    fields.end()
    return schema


def _json_schema(value: Any, name: str) -> dict[str, Any]:
    fields = Fields(mapping(value, name), name)
    title = fields.take("name", text)
    if title is not None and not _NAME.fullmatch(title):
        wanted = "must have 1 to 64 letters, digits and signs of _ -"
        raise RequestError(f"{name}.name {wanted}", param=f"{name}.name")
    fields.take("description", text)
    fields.take("strict", boolean)  # an answer follows its schema either way
    schema = fields.require("schema", mapping)
    fields.end()
    return schema
