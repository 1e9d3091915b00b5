"""How far an answer has come, and with what request another node goes on with it.

Every delta covers the tokens that were sampled, also those whose text is withheld, and draws need
no history. So the same request, the token ids and how much was delivered are all that the next
engine needs: it reads them, and says only what is left (records.Resume).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from p2p_mesh.core.records import Delta, InferenceRequest, Resume


@dataclass(slots=True)
class _Come:
    """One choice, as far as it was delivered; texts in characters."""

    tokens: list[int] = field(default_factory=list)
    text: int = 0
    reasoning: int = 0
    calls: dict[int, int] = field(default_factory=dict)
    """Characters of the arguments of each call, by its index."""
    scores: int = 0
    finished: bool = False

    def take(self, delta: Delta) -> None:
        self.tokens += delta.tokens
        self.text += len(delta.text)
        self.reasoning += len(delta.reasoning)
        self.scores += len(delta.logprobs)
        for call in delta.calls:
            self.calls[call.index] = self.calls.get(call.index, 0) + len(call.arguments)
        self.finished |= delta.finish is not None

    @property
    def shows(self) -> bool:
        """Whether a client has seen anything of it."""
        return bool(self.text or self.reasoning or self.calls or self.scores)

    def resume(self, choice: int) -> Resume:
        return Resume(
            choice=choice,
            tokens=tuple(self.tokens),
            text=self.text,
            reasoning=self.reasoning,
            calls=tuple(self.calls[index] for index in sorted(self.calls)),
            finished=self.finished,
        )


class Progress:
    """An answer to one request, by the deltas that were passed on."""

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._come: dict[int, _Come] = {}

    def take(self, delta: Delta) -> None:
        """It was passed on."""
        come = self._come.get(delta.choice)
        if come is None:
            come = self._come[delta.choice] = _Come()
        come.take(delta)

    @property
    def is_resumable(self) -> bool:
        """Whether all that was delivered follows from the tokens. The prompt can be said again,
        but not from the middle of its log-probabilities.
        """
        if self._request.echo and self._request.logprobs is None:
            return True
        return all(come.tokens or not come.shows for come in self._come.values())

    def request(self) -> InferenceRequest:
        """What the next node is asked; the request itself, as long as nothing was delivered."""
        resumed = [come.resume(choice) for choice, come in sorted(self._come.items())]
        return msgspec.structs.replace(self._request, resume=tuple(resumed))


def are_exact(before: str, after: str) -> bool:
    """Whether an engine of the second numerics goes on exactly as one of the first would have."""
    return before == after and "exact" in before.split()
