"""From deltas to what OpenAI's clients read: one JSON object, or chunks. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from p2p_mesh.core.records import Delta, Finish, Usage
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.openai import Question
from p2p_mesh.http.stream import event

_OBJECTS = {
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("text", False): "text_completion",
    ("text", True): "text_completion",
}

_json = msgspec.json.Encoder()


class Answer:
    """An answer to a question, as it grows."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        request = question.request
        self._head = {
            "id": request.id,
            "object": _OBJECTS[question.kind, question.stream],
            "created": request.asked_at,
            "model": request.model,
        }

    def take(self, delta: Delta) -> str:
        """The text that the answer grew by."""
        self._finish = delta.finish or self._finish
        self._usage = delta.usage or self._usage
        return delta.text

    def whole(self, text: str) -> dict[str, Any]:
        """The answer in one object. Raises RemoteError if its end never came."""
        finish, usage = self._end()
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self._question.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return {**self._head, "choices": [choice], "usage": _usage(usage)}

    def opening(self) -> bytes:
        """What comes before any text."""
        if self._question.kind == "text":
            return b""
        return self._event(self._choice({"role": "assistant", "content": "", "refusal": None}))

    def grown(self, delta: Delta) -> bytes:
        """The chunk of a delta; nothing where no text is to be seen yet."""
        text = self.take(delta)
        if not text:
            return b""
        return self._event(self._choice({"content": text} if self._is_chat else text))

    def closing(self) -> bytes:
        """What comes after all text. Raises RemoteError if the answer's end never came."""
        return b"".join(self._closing())

    def _closing(self) -> Iterator[bytes]:
        finish, usage = self._end()
        yield self._event(self._choice({} if self._is_chat else "", finish))
        if self._question.include_usage:
            yield event(_json.encode({**self._head, "choices": [], "usage": _usage(usage)}))

    @property
    def _is_chat(self) -> bool:
        return self._question.kind == "chat"

    def _end(self) -> tuple[Finish, Usage]:
        if self._finish is None or self._usage is None:
            raise RemoteError("the answer broke off before its end")
        return self._finish, self._usage

    def _choice(self, grown: dict[str, Any] | str, finish: Finish | None = None) -> dict[str, Any]:
        field = "delta" if self._is_chat else "text"
        return {"index": 0, field: grown, "finish_reason": finish, "logprobs": None}

    def _event(self, choice: dict[str, Any]) -> bytes:
        chunk = {**self._head, "choices": [choice]}
        if self._question.include_usage:
            chunk["usage"] = None
        return event(_json.encode(chunk))


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
