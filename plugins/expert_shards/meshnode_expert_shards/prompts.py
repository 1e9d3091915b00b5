"""The prompts that a model is measured with: those that come with this plugin, or those of a file.

What a model is asked decides which experts it needs. The bundled ones are of many kinds: prose,
code, data, mathematics, other languages, and chats. Whoever knows what a mesh is used for does
better with prompts of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from p2p_mesh.core.records import ChatPrompt, TextPrompt
from p2p_mesh.errors import ModelError

BUNDLED = "prompts.jsonl"
MAX_BYTES = 16 << 20
"""Of a file of prompts."""
MAX_PROMPTS = 10_000

Asked = ChatPrompt | TextPrompt


def bundled() -> tuple[Asked, ...]:
    text = resources.files("meshnode_expert_shards").joinpath(BUNDLED).read_text("utf-8")
    return tuple(_lines(text, BUNDLED, is_json=True))


def read(path: Path) -> tuple[Asked, ...]:
    """The prompts of a file, one on each line: JSON (`*.jsonl`) with `prompt` or `messages`, or
    plain text. Raises ModelError.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ModelError(f"{path} has more than {MAX_BYTES >> 20} MB: a part of it is enough")
    text = data.decode(errors="replace")
    found = tuple(_lines(text, str(path), is_json=path.suffix in (".jsonl", ".json")))
    if not found:
        raise ModelError(f"{path} has no prompts: write one on each line")
    if len(found) > MAX_PROMPTS:
        raise ModelError(f"{path} has {len(found)} prompts; {MAX_PROMPTS} is the limit")
    return found


def _lines(text: str, name: str, *, is_json: bool) -> Iterator[Asked]:
    # Not splitlines: a JSON string may hold what else ends a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json(line, f"{name}, line {number}") if is_json else TextPrompt(text=line)


def _json(line: str, place: str) -> Asked:
    try:
        found: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{place} is no JSON: {error}") from error
    match found:
        case {"prompt": str(text)} if text:
            return TextPrompt(text=text)
        case {"messages": [*messages]} if messages:
            return _chat(messages, place)
        case _:
            raise ModelError(f'{place}: "prompt" (a text) or "messages" (a chat) is wanted')


def _chat(messages: Sequence[Any], place: str) -> ChatPrompt:
    try:
        return msgspec.convert({"type": "chat", "messages": messages}, ChatPrompt)
    except msgspec.ValidationError as error:
        raise ModelError(f"{place}: {error}") from error
