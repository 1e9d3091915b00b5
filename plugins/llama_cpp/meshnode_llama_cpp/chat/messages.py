"""The messages of a client as a model's template takes them.

Content is one text, also where it came in parts; images and sounds are markers in it. What the
template does not know (system messages, calls, results) is written in a way that it does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from meshnode_llama_cpp.chat.format import NAME_PATTERN, Calls, spell
from meshnode_llama_cpp.chat.habits import SHORT_ID, Habits
from meshnode_llama_cpp.chat.media import Media
from meshnode_llama_cpp.chat.tools import check_json
from p2p_mesh.errors import RequestError

Message = dict[str, Any]

MAX_CALLS = 128


@dataclass(frozen=True, slots=True)
class Way:
    """What else decides how messages are written."""

    calls: Calls
    media: Media
    introduction: str = ""
    """A text of ours for the system message, which is made if there is none."""


def written(messages: Sequence[Message], habits: Habits, way: Way) -> list[Message]:
    """Raises RequestError for messages of another form than OpenAI's."""
    plain = [_plain(message, habits, way.media) for message in messages]
    if way.introduction:
        plain = _introduced(plain, way.introduction)
    if not habits.calls:
        plain = [_without_calls(message, way.calls) for message in plain]
    return plain if habits.system else _without_system(plain)


def _introduced(messages: list[Message], text: str) -> list[Message]:
    if messages[0]["role"] in ("system", "developer"):
        first = messages[0]
        return [first | {"content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def typed(messages: Iterable[Message]) -> list[Message]:
    """With each content as a list of parts."""
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def _plain(message: Message, habits: Habits, media: Media) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise _refused("each message needs a role")
    if role == "developer" and not habits.developer:
        role = "system"
    plain = message | {"role": role, "content": _content(message.get("content"), media)}
    for key in ("tool_calls", "reasoning_content"):
        plain.pop(key, None)
    if calls := message.get("tool_calls"):
        plain["tool_calls"] = _calls(calls, habits)
        if habits.null and not plain["content"]:
            plain["content"] = None
    if role == "tool" and habits.short_ids:
        plain["tool_call_id"] = _short(message.get("tool_call_id"))
    return plain | _reasoning(message, plain, habits)


def _reasoning(message: Message, plain: Message, habits: Habits) -> Message:
    reasoning = message.get("reasoning_content")
    if not isinstance(reasoning, str) or not reasoning or not habits.reasoning:
        return {}
    # gpt-oss's template refuses thinking beside both content and calls.
    if habits.reasoning == "thinking" and plain["content"] and "tool_calls" in plain:
        return {}
    return {habits.reasoning: reasoning}


def _content(content: Any, media: Media) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise _refused("a message's content is text, or a list of parts")
    return "\n".join(_part(part, media) for part in content)


def _part(part: Any, media: Media) -> str:
    if not isinstance(part, dict):
        raise _refused(f"a part of a message is an object, not {type(part).__name__!r}")
    match part.get("type"):
        case "image_url":
            return media.image(part)
        case "input_audio":
            return media.sound(part)
        case "text" | "refusal" as kind:
            text = part.get(kind)
            if not isinstance(text, str):
                raise _refused(f"a {kind} part needs a {kind}")
            return text
    given = part.get("type")
    named = repr(given[:64]) if isinstance(given, str) else type(given).__name__
    raise _refused(f"a part of a message is text, image_url or input_audio, not {named}")


def _calls(calls: Any, habits: Habits) -> list[Message]:
    if not isinstance(calls, list | tuple) or len(calls) > MAX_CALLS:
        raise _refused(f"tool_calls is a list of at most {MAX_CALLS} calls")
    return [_call(call, habits) for call in calls]


def _call(call: Any, habits: Habits) -> Message:
    function = call.get("function") if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise _refused("a tool call needs a function with a name")
    if not NAME_PATTERN.fullmatch(name):
        raise _refused(f"{name[:128]!r} is no name of a function")
    arguments = _arguments(function.get("arguments") or "{}", name)
    given = arguments if habits.objects else json.dumps(arguments, ensure_ascii=False)
    call_id = _short(call.get("id")) if habits.short_ids else _text(call.get("id"))
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": given}}


def _arguments(given: Any, name: str) -> dict[str, Any]:
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _refused(f"the arguments of a call of {name} are not the text of a JSON object")
    check_json(value, "messages", f"the arguments of a call of {name}")
    return value


def _text(given: Any) -> str:
    return given if isinstance(given, str) else ""


def _short(call_id: Any) -> str:
    """Nine letters and digits, the same ones for the same id."""
    text = _text(call_id)
    return text if SHORT_ID.fullmatch(text) else hashlib.sha256(text.encode()).hexdigest()[:9]


def _without_calls(message: Message, calls: Calls) -> Message:
    """Calls are what the model wrote; results come from the user."""
    if message["role"] == "tool":
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": content}
    made = message.get("tool_calls")
    if not made:
        return message
    texts = [(one["function"]["name"], _as_text(one["function"]["arguments"])) for one in made]
    content = "\n".join(filter(None, (message["content"], spell(calls, texts))))
    return {key: value for key, value in message.items() if key != "tool_calls"} | {
        "content": content
    }


def _as_text(arguments: Any) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False)


def _without_system(messages: Iterable[Message]) -> list[Message]:
    """What a system message says comes with the next message of the user."""
    result: list[Message] = []
    said: list[str] = []
    for message in messages:
        if message["role"] == "system":
            said.append(message["content"])
        elif message["role"] == "user" and said:
            result.append(message | {"content": "\n\n".join((*said, message["content"]))})
            said = []
        else:
            result.append(message)
    return [*result, {"role": "user", "content": "\n\n".join(said)}] if said else result


def _refused(why: str) -> RequestError:
    return RequestError(why, param="messages")
