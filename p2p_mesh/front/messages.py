"""The messages of a chat: checked, and written as the model's template will read them. Pure.

What is old becomes new: `developer` is `system`, a `function_call` is a tool call and its result
a `tool` message. Text parts become lines of one text. Images and sounds stay parts, as data; a
link stays a link only where links may be fetched (front/media.py).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from p2p_mesh.core.records import MAX_MESSAGES
from p2p_mesh.errors import RequestError
from p2p_mesh.front.sampling import one_of
from p2p_mesh.front.tools import function_name
from p2p_mesh.http.body import Fields, items, mapping, text, word, wrong

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_CALLS = 128
MAX_PARTS = 1024
KEPT = ("id", "provider_specific_fields", "reasoning_details", "thinking_blocks")
"""What agents and routers keep with an answer, and no template reads: accepted without effect."""

DATA_URL = re.compile(r"data:image/[\w.+-]{1,64};base64,", re.ASCII | re.IGNORECASE)
LINK = re.compile(r"https?://", re.IGNORECASE)
NO_LINKS = (
    "is a link, and this node fetches none (--remote-media allows it); "
    "send the image itself: data:image/png;base64,..."
)

Message = dict[str, Any]


def messages(value: Any, name: str, *, links: bool) -> tuple[Message, ...]:
    """Reads the messages of a chat. With `links`, an image may be one."""
    read = items(partial(_message, links=links), 1, MAX_MESSAGES)
    return tuple(_modern(read(value, name)))


def _message(value: Any, name: str, *, links: bool) -> Message:
    fields = Fields(mapping(value, name), name)
    role = fields.require("role", word(*ROLES))
    if role == "assistant":
        message = _assistant(fields)
    elif role == "user":
        message = {"content": fields.require("content", partial(_user_content, links=links))}
    elif role == "function":
        message = {"content": fields.take("content", _content) or ""}
        message["name"] = fields.require("name", function_name)
    else:
        message = {"content": fields.require("content", _content)}
    if role == "tool":
        message["tool_call_id"] = fields.require("tool_call_id", _call_id)
    if (author := fields.take("name", text)) is not None:
        message["name"] = author
    fields.end()
    return {"role": "system" if role == "developer" else role, **message}


def _assistant(fields: Fields) -> Message:
    message: Message = {"content": fields.take("content", _content)}
    refusal = fields.take("refusal", text)
    if message["content"] is None:
        message["content"] = refusal
    more = {
        "reasoning_content": one_of(fields, "reasoning_content", "reasoning", text),
        "tool_calls": [*(fields.take("tool_calls", items(_call, 0, MAX_CALLS)) or ())],
        "function_call": fields.take("function_call", _function_call),
    }
    message |= {name: given for name, given in more.items() if given}
    # An answer of ours, sent back as an SDK keeps it, has these.
    fields.neutral("annotations", [])
    fields.neutral("audio")
    fields.drop(*KEPT)
    if message == {"content": None}:
        fields.require("content", text, "only a message with tool calls may have none")
    return message


def _call(value: Any, name: str) -> Message:
    fields = Fields(mapping(value, name), name)
    fields.take("type", word("function"))
    fields.drop("index")  # as it stands in the deltas of a stream
    call_id = fields.require("id", _call_id)
    function = fields.require("function", _function_call)
    fields.end()
    return {"id": call_id, "type": "function", "function": function}


def _call_id(value: Any, name: str) -> str:
    found = text(value, name)
    if not 1 <= len(found) <= 256:
        raise RequestError(f"{name} must have 1 to 256 characters", param=name)
    return found


def _function_call(value: Any, name: str) -> Message:
    fields = Fields(mapping(value, name), name)
    call = {
        "name": fields.require("name", function_name),
        "arguments": fields.require("arguments", text),
    }
    fields.end()
    return call


def _modern(given: Iterable[Message]) -> Iterable[Message]:
    """Calls of functions as calls of tools. Their ids are counted: nine letters and digits, which
    is what Mistral's templates take.
    """
    calls = 0
    for message in given:
        call = message.pop("function_call", None)
        if call is not None:
            calls += 1
            tool = {"id": f"call{calls:05}", "type": "function", "function": call}
            message["tool_calls"] = [*message.get("tool_calls", ()), tool]
        elif message["role"] == "function":
            message |= {"role": "tool", "tool_call_id": f"call{calls:05}"}
        yield message


def _content(value: Any, name: str) -> str:
    """The text of a message; several parts become lines, as llama-server does it."""
    content = _parts(value, name, partial(_part, sorts=("text", "refusal")))
    assert isinstance(content, str)
    return content


def _user_content(value: Any, name: str, *, links: bool) -> str | list[Message]:
    sorts = ("text", "image_url", "input_audio")
    return _parts(value, name, partial(_part, sorts=sorts, links=links))


def _parts(value: Any, name: str, read: Any) -> str | list[Message]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong(name, "a string or an array of parts", value)
    parts = items(read, 1, MAX_PARTS)(value, name)
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return [*parts]


def _part(value: Any, name: str, *, sorts: tuple[str, ...], links: bool = False) -> Message:
    fields = Fields(mapping(value, name), name)
    sort = fields.require("type", word(*sorts))
    part: Message = {"type": sort}
    if sort == "image_url":
        part[sort] = fields.require(sort, partial(_image, links=links))
    elif sort == "input_audio":
        part[sort] = fields.require(sort, _sound)
    else:
        part = {"type": "text", "text": fields.require(sort, text)}
    fields.drop("prompt_cache_breakpoint")
    fields.end()
    return part


def _image(value: Any, name: str, *, links: bool) -> Message:
    fields = Fields(mapping(value, name), name)
    url = fields.require("url", partial(_image_url, links=links))
    fields.take("detail", word("auto", "low", "high", "original"))
    fields.end()
    return {"url": url}


def _image_url(value: Any, name: str, *, links: bool) -> str:
    url = text(value, name)
    if LINK.match(url):
        if not links:
            raise RequestError(f"{name} {NO_LINKS}", param=name)
        return url
    head = DATA_URL.match(url)
    if head is None:
        raise RequestError(f"{name} must begin with data:image/...;base64,", param=name)
    _check_base64(url[head.end() :], name)
    return url


def _sound(value: Any, name: str) -> Message:
    fields = Fields(mapping(value, name), name)
    data = fields.require("data", text)
    _check_base64(data, f"{name}.data")
    sort = fields.require("format", word("wav", "mp3"))
    fields.end()
    return {"data": data, "format": sort}


def _check_base64(data: str, name: str) -> None:
    try:
        is_empty = not base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(f"{name} is not base64", param=name) from None
    if is_empty:
        raise RequestError(f"{name} is empty", param=name)
