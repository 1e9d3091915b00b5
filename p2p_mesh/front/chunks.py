"""From deltas to server-sent events, one or more for each. Pure.

A streamed token passes here, so the ordinary delta - some text of a choice that has begun - is
spliced between two pieces that were encoded once: all that changes in its chunk is the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from p2p_mesh.core.records import CallDelta, Delta
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import Ends, call_id, head
from p2p_mesh.front.logprobs import TextForm, chat_form
from p2p_mesh.front.openai import Question
from p2p_mesh.http.stream import event

_HOLE = b"\0"
"""Stands for what is spliced in; JSON never has it, not even within a string."""

_ROLE = {"role": "assistant", "content": "", "refusal": None}

_json = msgspec.json.Encoder()


class Chunks:
    """A streamed answer, as it grows."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._is_chat = question.kind == "chat"
        self._head = head(question)
        self._ends = Ends(question)
        self._splices: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        """Of the choices that have begun and not ended, by prompt and choice."""
        self._calls: set[tuple[int, int]] = set()
        self._forms: dict[int, TextForm] = {}

    def grown(self, delta: Delta, prompt: int = 0) -> bytes:
        """The events of a delta; none where nothing is to be seen yet. Raises RemoteError for
        what cannot belong to the answer.
        """
        plain = self.plain(delta, prompt)
        return b"".join(self._grown(delta, prompt)) if plain is None else plain

    def plain(self, delta: Delta, prompt: int = 0) -> bytes | None:
        """As `grown`, of an ordinary delta, from which nothing is to be remembered; else None."""
        splice = self._splices.get((prompt, delta.choice))
        if splice is None or not _is_plain(delta):
            return None
        if not delta.text:
            return b""
        return splice[0] + _json.encode(delta.text) + splice[1]

    def closing(self) -> bytes:
        """What comes after all choices. Raises RemoteError if an end never came."""
        self._ends.check()
        if not self._question.include_usage:
            return b""
        return event(_json.encode({**self._head, "choices": [], "usage": self._ends.usage()}))

    def _grown(self, delta: Delta, prompt: int) -> Iterator[bytes]:
        choice = self._ends.take(delta, prompt)
        key = (prompt, delta.choice)
        if key not in self._splices:
            if choice in self._ends.reasons and delta.finish is None:
                return  # the usage, perhaps, of an answer that has ended
            self._splices[key] = self._splice(choice)
            if self._is_chat:
                yield self._event(choice, _ROLE)
        logprobs = self._logprobs(delta, choice)
        for grown in self._parts(delta, choice):
            yield self._event(choice, grown, logprobs=logprobs)
            logprobs = None
        if logprobs is not None:  # of tokens that show nothing yet
            yield self._event(choice, {"content": ""} if self._is_chat else "", logprobs=logprobs)
        if delta.finish is not None:
            del self._splices[key]
            yield self._event(choice, {} if self._is_chat else "", self._ends.reasons[choice])

    def _parts(self, delta: Delta, choice: int) -> Iterator[dict[str, Any] | str]:
        """What a delta shows, one thing at a time, as clients expect it."""
        if not self._is_chat:
            if delta.text:
                yield delta.text
            return
        if delta.reasoning:
            yield {"reasoning_content": delta.reasoning}
        if delta.text:
            yield {"content": delta.text}
        for call in delta.calls:
            yield from self._call(call, choice)

    def _call(self, call: CallDelta, choice: int) -> Iterator[dict[str, Any]]:
        key = (choice, call.index)
        if key not in self._calls:
            if not call.name:
                raise RemoteError("a tool call without a name")
            self._calls.add(key)
            name = call_id(self._question.requests[0].id, choice, call.index)
            function = {"name": call.name, "arguments": ""}
            yield from self._called(call.index, {"id": name, "type": "function"}, function)
        if call.arguments:
            yield from self._called(call.index, {}, {"arguments": call.arguments})

    def _called(
        self, index: int, fields: dict[str, Any], function: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        if not self._question.is_legacy:
            yield {"tool_calls": [{"index": index, **fields, "function": function}]}
        elif index == 0:  # all that the old form has room for
            yield {"function_call": function}

    def _logprobs(self, delta: Delta, choice: int) -> dict[str, Any] | None:
        top = self._question.logprobs
        if top is None or not delta.logprobs:
            return None
        if self._is_chat:
            return chat_form(delta.logprobs, top)
        return self._forms.setdefault(choice, TextForm(top)).take(delta.logprobs)

    def _splice(self, choice: int) -> tuple[bytes, bytes]:
        hole = msgspec.Raw(_HOLE)
        chunk = self._event(choice, {"content": hole} if self._is_chat else hole)
        before, _, after = chunk.partition(_HOLE)
        return before, after

    def _event(
        self,
        choice: int,
        grown: dict[str, Any] | str | msgspec.Raw,
        finish: str | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        field = "delta" if self._is_chat else "text"
        found = {"index": choice, field: grown, "logprobs": logprobs, "finish_reason": finish}
        chunk = {**self._head, "choices": [found]}
        if self._question.include_usage:
            chunk["usage"] = None
        return event(_json.encode(chunk))


def _is_plain(delta: Delta) -> bool:
    """Whether there is nothing in a delta but text."""
    return not (
        delta.logprobs or delta.calls or delta.reasoning
        or delta.finish is not None or delta.usage is not None
    )  # fmt: skip
