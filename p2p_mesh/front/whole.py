"""From deltas to one JSON object. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from p2p_mesh.core.records import CallDelta, Delta, TokenLogprob
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.answer import Ends, call_id, head
from p2p_mesh.front.logprobs import TextForm, chat_form
from p2p_mesh.front.openai import Question


@dataclass(slots=True)
class _Call:
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Choice:
    """What has come of one choice."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    sampled: int = 0

    def take(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.reasoning.append(delta.reasoning)
        self.logprobs += delta.logprobs
        self.sampled += len(delta.tokens)
        for call in delta.calls:
            self._call(call)

    def _call(self, call: CallDelta) -> None:
        if call.index not in self.calls:
            if not call.name:
                raise RemoteError("a tool call without a name")
            self.calls[call.index] = _Call(call.name)
        self.calls[call.index].arguments.append(call.arguments)

    def likelihood(self) -> float:
        """The mean log-probability of what was sampled, the prompt's left out."""
        logs = [one.logprob or 0.0 for one in self.logprobs[-self.sampled :]]
        return sum(logs) / len(logs) if logs else float("-inf")


class Whole:
    """An answer that is put together until it is whole."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._ends = Ends(question)
        self._choices: defaultdict[int, _Choice] = defaultdict(_Choice)

    def take(self, delta: Delta, prompt: int = 0) -> None:
        """Raises RemoteError for what cannot belong to the answer."""
        self._choices[self._ends.take(delta, prompt)].take(delta)

    def body(self) -> dict[str, Any]:
        """The answer in one object. Raises RemoteError if an end never came."""
        self._ends.check()
        choices = [self._choice(place, choice) for place, choice in enumerate(self._kept())]
        return {**head(self._question), "choices": choices, "usage": self._ends.usage()}

    def partial(self) -> dict[str, Any]:
        """What has come of an answer that broke off: no finish reason, no usage. Empty where
        nothing has.
        """
        choices = [self._choice(choice, choice) for choice in sorted(self._choices)]
        return {**head(self._question), "choices": choices, "usage": None} if choices else {}

    def _kept(self) -> list[int]:
        """The choices that the client gets: the likeliest of each prompt, best first, where more
        were asked for.
        """
        tried, wanted = self._question.requests[0].choices, self._question.choices
        kept: list[int] = []
        for prompt in range(len(self._question.requests)):
            choices = list(range(prompt * tried, (prompt + 1) * tried))
            if tried > wanted:
                choices.sort(key=lambda one: -self._choices[one].likelihood())
            kept += choices[:wanted]
        return kept

    def _choice(self, index: int, choice: int) -> dict[str, Any]:
        reason, found = self._ends.reasons.get(choice), self._choices[choice]
        if self._question.kind == "chat":
            answer: dict[str, Any] = {"message": self._message(choice, found)}
        else:
            answer = {"text": "".join(found.text)}
        logprobs = self._logprobs(found)
        return {"index": index, **answer, "logprobs": logprobs, "finish_reason": reason}

    def _message(self, choice: int, found: _Choice) -> dict[str, Any]:
        text = "".join(found.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if reasoning := "".join(found.reasoning):
            message["reasoning_content"] = reasoning
        if found.calls:
            message["content"] = text or None
            message |= self._calls(choice, found)
        return message

    def _calls(self, choice: int, found: _Choice) -> dict[str, Any]:
        functions = {
            index: {"name": call.name, "arguments": "".join(call.arguments)}
            for index, call in sorted(found.calls.items())
        }
        if self._question.is_legacy:  # which has room for one
            return {"function_call": next(iter(functions.values()))}
        request = self._question.requests[0].id
        return {
            "tool_calls": [
                {"id": call_id(request, choice, index), "type": "function", "function": function}
                for index, function in functions.items()
            ]
        }

    def _logprobs(self, found: _Choice) -> dict[str, Any] | None:
        top = self._question.logprobs
        if top is None:
            return None
        if self._question.kind == "chat":
            return chat_form(found.logprobs, top)
        return TextForm(top).take(found.logprobs)
