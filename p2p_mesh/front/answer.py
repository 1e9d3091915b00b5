"""What whole and streamed answers have in common: their head, their ends, and what they cost.
Pure.

A choice is known to the client by one number: those of the first prompt come first.
"""

from __future__ import annotations

import hashlib
import string
from typing import Any

from p2p_mesh.core.names import RequestId
from p2p_mesh.core.records import Delta, Usage
from p2p_mesh.errors import RemoteError
from p2p_mesh.front.openai import Question

OBJECTS = {
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
    ("text", False): "text_completion",
    ("text", True): "text_completion",
}

_LETTERS = string.digits + string.ascii_letters


def head(question: Question) -> dict[str, Any]:
    """The fields that the answer, or each of its chunks, begins with."""
    request = question.requests[0]
    return {
        "id": request.id,
        "object": OBJECTS[question.kind, question.stream],
        "created": request.asked_at,
        "model": request.model,
    }


def call_id(request: RequestId, choice: int, index: int) -> str:
    """The id of a tool call: the same from whichever node, and nine letters and digits, since
    Mistral's templates take nothing else.
    """
    seed = hashlib.blake2b(f"{request}/{choice}/{index}".encode(), digest_size=8).digest()
    number = int.from_bytes(seed, "little")
    return "".join(_LETTERS[number // 62**place % 62] for place in range(9))


class Ends:
    """Holds that every choice of every prompt ends once, and every prompt is counted once."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._choices = question.requests[0].choices
        self.reasons: dict[int, str] = {}
        """Why each choice ended that has."""
        self._usages: dict[int, Usage] = {}

    def take(self, delta: Delta, prompt: int) -> int:
        """The number of the choice that grew. Raises RemoteError if it cannot have grown."""
        choice = prompt * self._choices + delta.choice
        if delta.choice >= self._choices:
            raise RemoteError("an answer with a choice that was not asked for")
        if choice in self.reasons and _grows(delta):
            raise RemoteError("an answer that went on after its end")
        if delta.finish is not None:
            self.reasons[choice] = self._reason(delta.finish)
        if delta.usage is not None:
            self._usages[prompt] = delta.usage
        return choice

    def _reason(self, finish: str) -> str:
        if finish != "tool_calls":
            return finish
        if self._question.kind == "text":  # which has no calls
            return "stop"
        return "function_call" if self._question.is_legacy else finish

    def check(self) -> None:
        """Raises RemoteError if an end never came."""
        prompts = len(self._question.requests)
        if len(self.reasons) < prompts * self._choices or len(self._usages) < prompts:
            raise RemoteError("the answer broke off before its end")

    def usage(self) -> dict[str, Any]:
        """What all of it cost."""
        return usage_body(tuple(self._usages.values()))


def _grows(delta: Delta) -> bool:
    return bool(
        delta.text or delta.reasoning or delta.calls or delta.logprobs or delta.finish is not None
    )


def usage_body(usages: tuple[Usage, ...]) -> dict[str, Any]:
    """Usage as OpenAI writes it; predictions are what speculation proposed."""
    prompt = sum(one.prompt_tokens for one in usages)
    completion = sum(one.completion_tokens for one in usages)
    accepted = sum(one.accepted_tokens for one in usages)
    drafted = sum(one.drafted_tokens for one in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in usages)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(one.reasoning_tokens for one in usages),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": max(0, drafted - accepted),
            "audio_tokens": 0,
        },
    }
