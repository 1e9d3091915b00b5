"""From the events of a foreign answer to Deltas. Pure.

A foreign server gives no token ids, so the deltas have none. A choice that the server leaves
without a reason for its end has ended by itself; usage that it does not tell is zero, which says
that nobody counted. OpenAI tells the usage of all choices, at the end; llama-server that of each
choice, when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshnode_openai_endpoint.messages import Choice, Chunk, Likelihood, Logprobs, Spoken, Used
from p2p_mesh.core.records import MAX_LOGPROBS, CallDelta, Delta, Finish, TokenLogprob, Usage
from p2p_mesh.errors import RemoteError

_FINISH: dict[str, Finish] = {
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
"""Every other reason is a stop."""

_SILENT = Spoken()
UNKNOWN_TOKEN = 0
"""The id in a log-probability of a server that tells texts only."""


class Answer:
    """An answer of so many choices, as it comes."""

    def __init__(self, choices: int) -> None:
        self._open = set(range(choices))
        self._choices = choices
        self._used = Used()
        self._used_before: list[Used] = []
        self._named: set[tuple[int, int]] = set()
        self._has_begun = False

    @property
    def is_finished(self) -> bool:
        """Whether every choice has said how it ended."""
        return not self._open

    def take(self, chunk: Chunk) -> Iterator[Delta]:
        """What an event tells. Raises RemoteError for what was not asked for."""
        for choice in chunk.choices or ():
            if choice.index >= self._choices:
                raise RemoteError("an answer with a choice that was not asked for")
            self._has_begun = True
            delta = self._delta(choice)
            if delta != Delta(choice=choice.index):
                yield delta
        if chunk.usage is not None:
            self._count(chunk, chunk.usage)

    def _count(self, chunk: Chunk, used: Used) -> None:
        ends = not chunk.choices or any(choice.finish_reason for choice in chunk.choices)
        if self._open and ends and len(self._open) < self._choices:
            self._used_before.append(used)
        else:
            self._used = used

    def end(self) -> Iterator[Delta]:
        """What is left to say when the server has said all. Raises RemoteError if that is
        nothing.
        """
        if not self._has_begun:
            raise RemoteError("an answer that ended before it began")
        for choice in sorted(self._open):
            yield Delta(choice=choice, finish="stop")
        yield Delta(usage=_usage([*self._used_before, self._used]))

    def _delta(self, choice: Choice) -> Delta:
        spoken = choice.delta or _SILENT
        finish = None
        if choice.finish_reason and choice.index in self._open:
            self._open.discard(choice.index)
            finish = _FINISH.get(choice.finish_reason, "stop")
        return Delta(
            choice=choice.index,
            text=(spoken.content or "") + (spoken.refusal or "") + (choice.text or ""),
            reasoning=spoken.reasoning_content or spoken.reasoning or "",
            calls=tuple(self._calls(choice.index, spoken)),
            logprobs=tuple(_logprobs(choice.logprobs)) if choice.logprobs else (),
            finish=finish,
        )

    def _calls(self, choice: int, spoken: Spoken) -> Iterator[CallDelta]:
        for place, call in enumerate((spoken.tool_calls or ())[:1024]):
            index = place if call.index is None else call.index
            name = (call.function.name if call.function else None) or ""
            arguments = (call.function.arguments if call.function else None) or ""
            if name and (choice, index) in self._named:
                name = ""  # some servers repeat it
            if name:
                self._named.add((choice, index))
            if name or arguments:
                yield CallDelta(index=index, name=name, arguments=arguments)


def _usage(parts: Sequence[Used]) -> Usage:
    """The prompt once, and what all parts took together."""
    prompt = parts[0].prompt_tokens_details
    return Usage(
        prompt_tokens=max(one.prompt_tokens or 0 for one in parts),
        completion_tokens=sum(one.completion_tokens or 0 for one in parts),
        cached_tokens=(prompt.cached_tokens if prompt else None) or 0,
        reasoning_tokens=sum(
            one.completion_tokens_details.reasoning_tokens or 0
            for one in parts
            if one.completion_tokens_details
        ),
    )


def _logprobs(found: Logprobs) -> Iterator[TokenLogprob]:
    if found.content is not None:
        yield from (_likelihood(one) for one in found.content)
        return
    tops = found.top_logprobs or []
    for place, (token, logprob) in enumerate(
        zip(found.tokens or (), found.token_logprobs or (), strict=False)
    ):
        top = (tops[place] if place < len(tops) else None) or {}
        likely = sorted(top.items(), key=lambda one: -one[1])[:MAX_LOGPROBS]
        yield TokenLogprob(
            token=UNKNOWN_TOKEN,
            piece=token.encode(),
            logprob=None if logprob is None else min(logprob, 0.0),
            top=tuple((UNKNOWN_TOKEN, text.encode(), min(value, 0.0)) for text, value in likely),
        )


def _likelihood(found: Likelihood) -> TokenLogprob:
    return TokenLogprob(
        token=_token(found),
        piece=_piece(found),
        logprob=None if found.logprob is None else min(found.logprob, 0.0),
        top=tuple(
            (_token(one), _piece(one), min(one.logprob or 0.0, 0.0))
            for one in (found.top_logprobs or ())[:MAX_LOGPROBS]
        ),
    )


def _token(found: Likelihood) -> int:
    return UNKNOWN_TOKEN if found.id is None else found.id


def _piece(found: Likelihood) -> bytes:
    return found.token.encode() if found.bytes is None else bytes(found.bytes)
