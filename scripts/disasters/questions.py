"""What the clients ask: chats, completions, tool calls and answers held to a schema, greedy and
seeded, long enough that something may happen in the middle of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

Body = dict[str, Any]

LENGTHS = (120, 280)
"""Tokens of an answer."""

PEOPLE = {
    "type": "array",
    "minItems": 8,
    "maxItems": 12,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 20, "maxLength": 60},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
}
NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "description": "Writes something down",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"enum": ["here", "there"]},
                "text": {"type": "string", "minLength": 300, "maxLength": 900},
            },
            "required": ["place", "text"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class Question:
    number: int
    kind: str
    path: str
    body: Body


def make_questions(random: Random, count: int, model: str) -> list[Question]:
    """So many, each with a seed of its own; every fourth is of the same kind."""
    made = []
    for number in range(count):
        kind, make = KINDS[number % len(KINDS)]
        path, body = make(random)
        body |= {
            "model": model,
            "stream": True,
            "max_tokens": random.randint(*LENGTHS),
            "temperature": random.choice((0, 0.7, 1.1)),
            "seed": random.getrandbits(31),
        }
        made.append(Question(number, kind, path, body))
    return made


def _words(random: Random) -> str:
    return " ".join(f"w{random.randint(0, 1500)}" for _ in range(random.randint(4, 30)))


def _chat(random: Random, **more: Any) -> tuple[str, Body]:
    messages = [{"role": "user", "content": _words(random)}]
    return "/v1/chat/completions", {"messages": messages, **more}


def _completion(random: Random) -> tuple[str, Body]:
    return "/v1/completions", {"prompt": _words(random)}


KINDS: tuple[tuple[str, Callable[[Random], tuple[str, Body]]], ...] = (
    ("chat", _chat),
    ("completion", _completion),
    ("tools", partial(_chat, tools=[NOTE], tool_choice="required")),
    ("schema", partial(_chat, response_format={
        "type": "json_schema",
        "json_schema": {"name": "people", "schema": {"type": "object", "properties": {
            "people": PEOPLE}, "required": ["people"], "additionalProperties": False},
            "strict": True},
    })),
)  # fmt: skip
