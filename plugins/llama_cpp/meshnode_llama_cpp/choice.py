"""One choice of an answer, from sampled tokens to what a client may see of them.

Tokens become bytes, bytes become text that is certain (text.py), and text becomes content,
reasoning and tool calls (chat/). All of it follows from the tokens alone: a choice that is resumed
is the same tokens once more, and what was delivered of it is not delivered again.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshnode_llama_cpp.chat import Grown
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prompt import Prompt
from meshnode_llama_cpp.text import Text
from p2p_mesh.core.records import CallDelta, Finish, Resume

NOTHING = Grown()


class Choice:
    """`most`: tokens that it may have."""

    def __init__(self, prompt: Prompt, model: Model, most: int) -> None:
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.reasoning_tokens = 0
        self._model = model
        self._most = most
        self._text = Text(prompt.stops)
        self._parser = prompt.parser()
        self._preserved = prompt.preserved
        self._has_calls = False

    def push(self, token: int) -> Grown:
        """What the next token adds; `finish` says whether it is the last."""
        self.tokens.append(token)
        self.reasoning_tokens += self._parser.reasoning
        ends = self._model.ends(token)
        grown = NOTHING if ends else self._grow(self._text.push(self._piece(token)))
        if ends or self._text.stopped or self._parser.done:
            self.finish = "stop"
        elif len(self.tokens) >= self._most:
            self.finish = "length"
        return grown if self.finish is None else joined((grown, self._conclude()))

    def replay(self, resume: Resume) -> Grown:
        """Takes the tokens that a broken answer had; what they add, delivered or not."""
        return joined([self.push(token) for token in resume.tokens if self.finish is None])

    def _piece(self, token: int) -> bytes:
        piece = self._model.piece(token)
        if not piece and self._preserved:
            spelled = self._model.spelled(token)
            return spelled if spelled.decode(errors="replace") in self._preserved else b""
        return piece

    def _grow(self, text: str) -> Grown:
        if not text:
            return NOTHING
        grown = self._parser.push(text)
        self._has_calls |= bool(grown.calls)
        return grown

    def _conclude(self) -> Grown:
        """What was held back. Flushing may complete a stop string: one that ends in a
        replacement character.
        """
        held = self._grow(self._text.finish())
        if self._text.stopped:
            self.finish = "stop"
        last = self._parser.finish()
        self._has_calls |= bool(last.calls)
        if self._has_calls and self.finish == "stop":
            self.finish = "tool_calls"
        return joined((held, last))


def joined(parts: Iterable[Grown]) -> Grown:
    """What they add together."""
    some = [part for part in parts if part is not NOTHING]
    if len(some) == 1:
        return some[0]
    return Grown(
        text="".join(part.text for part in some),
        reasoning="".join(part.reasoning for part in some),
        calls=tuple(call for part in some for call in part.calls),
    )


def rest(grown: Grown, resume: Resume) -> Grown:
    """What of it was not delivered."""
    return Grown(
        text=grown.text[resume.text :],
        reasoning=grown.reasoning[resume.reasoning :],
        calls=tuple(_undelivered(grown.calls, resume.calls)),
    )


def _undelivered(calls: Iterable[CallDelta], delivered: tuple[int, ...]) -> Iterable[CallDelta]:
    whole: dict[int, CallDelta] = {}
    for call in calls:
        old = whole.get(call.index, CallDelta(index=call.index))
        whole[call.index] = CallDelta(
            index=call.index,
            name=old.name + call.name,
            arguments=old.arguments + call.arguments,
        )
    for call in whole.values():
        if call.index >= len(delivered):
            yield call
        elif arguments := call.arguments[delivered[call.index] :]:
            yield CallDelta(index=call.index, arguments=arguments)
