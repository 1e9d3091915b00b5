"""What this node has learned by asking: how many tokens a prompt of so many bytes has, and how
long a first token usually takes. Both are guesses, and bound nothing that must be exact.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from p2p_mesh.core.records import (
    ChatPrompt,
    EmbedQuery,
    InferenceRequest,
    Query,
    RerankQuery,
    TextPrompt,
    TokenPrompt,
)

MODELS = 256
"""Of which something is kept; the one that was used longest ago goes first."""

TOKEN_SIZE = 4.0
"""Bytes of a token where nothing is known: English, and most vocabularies."""

MEDIUM_SIZE = 2048
"""Bytes that an image or a sound counts for: some 512 tokens, however large its file is."""

MESSAGE_SIZE = 16
"""Bytes of a message beside its text: its role, and what the template puts around it."""

LEARNING = 0.2
"""How much of what is new goes into a smoothed value."""

SAMPLES = 64
ENOUGH = 10
"""First tokens that must have been seen before they bound anything."""

TIMES = 3.0
"""A first token that takes so many times what 95 in 100 take is late."""

FLOOR = 0.5
"""Seconds in which no first token is late: a second question costs another node's work."""

OVERHEAD = 64
"""Tokens by which each prompt is counted longer, since not all of the time is reading."""

T = TypeVar("T")


def size(question: InferenceRequest | Query) -> int:
    """Bytes of the text that a model must read, about."""
    match question:
        case InferenceRequest(prompt=ChatPrompt() as prompt):
            return sum(map(_weight, prompt.messages)) + sum(
                _bytes(tool.description) + _weight(tool.parameters) for tool in prompt.tools
            )
        case InferenceRequest(prompt=TextPrompt() as prompt):
            return _bytes(prompt.text) + _bytes(prompt.suffix)
        case InferenceRequest(prompt=TokenPrompt() as prompt):
            return int(len(prompt.tokens) * TOKEN_SIZE)
        case EmbedQuery():
            return sum(map(_length, question.inputs))
        case RerankQuery():
            again = len(question.documents) * _bytes(question.query)
            return again + sum(map(_bytes, question.documents))
    return 0  # of its vocabulary, which takes no reading


def _bytes(text: str) -> int:
    # Half of a surrogate pair, which JSON may have, is text of three bytes here.
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _length(text: str | tuple[int, ...]) -> int:
    return _bytes(text) if isinstance(text, str) else int(len(text) * TOKEN_SIZE)


def _weight(message: dict[str, object]) -> int:
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:  # nearly all are: a role and a text
        return MESSAGE_SIZE + _bytes(content)
    return MESSAGE_SIZE + sum(_sizes(message))


def _sizes(value: object) -> Iterator[int]:
    # Not by recursion: a schema may be as deep as a peer likes.
    left = [value]
    while left:
        match left.pop():
            case {"type": "image_url" | "input_audio"}:
                yield MEDIUM_SIZE
            case dict() as inner:
                yield sum(_bytes(key) for key in inner if isinstance(key, str))
                left.extend(inner.values())
            case list() as inner:
                left.extend(inner)
            case str() as text:
                yield _bytes(text)


class _Recent(Generic[T]):
    """Something for each model, of the models that were used last."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, T] = OrderedDict()

    def get(self, model: str) -> T | None:
        return self._held.get(model)

    def put(self, model: str, value: T) -> None:
        self._held[model] = value
        self._held.move_to_end(model)
        if len(self._held) > MODELS:
            self._held.popitem(last=False)


class TokenSizes:
    """Bytes of a token, for each model: languages and vocabularies differ by several times."""

    def __init__(self) -> None:
        self._sizes: _Recent[float] = _Recent()

    def tokens(self, model: str, request: InferenceRequest) -> int:
        """How many tokens the prompt has, about."""
        if isinstance(request.prompt, TokenPrompt):
            return len(request.prompt.tokens)
        return math.ceil(size(request) / (self._sizes.get(model) or TOKEN_SIZE))

    def learn(self, model: str, request: InferenceRequest, prompt_tokens: int) -> None:
        """What an answer's usage said. A peer may say anything, so within what can be."""
        if not prompt_tokens or isinstance(request.prompt, TokenPrompt):
            return
        seen = min(16.0, max(1.0, size(request) / prompt_tokens))
        known = self._sizes.get(model) or TOKEN_SIZE
        self._sizes.put(model, known + LEARNING * (seen - known))


class Firsts:
    """How long first tokens took, for each model, and so when one is late.

    A time is kept by the length of its prompt, since reading grows with it. The bound is three
    times what all but one in twenty took, and half a second at least. What was given up is to be
    counted with the time until then, else a node that became slow would never seem so.
    """

    def __init__(self) -> None:
        self._rates: _Recent[deque[float]] = _Recent()

    def took(self, model: str, seconds: float, prompt_tokens: int) -> None:
        rates = self._rates.get(model)
        rates = deque(maxlen=SAMPLES) if rates is None else rates
        rates.append(seconds / (prompt_tokens + OVERHEAD))
        self._rates.put(model, rates)

    def bound(self, model: str, prompt_tokens: int) -> float | None:
        """Seconds after which the first token of such a prompt is late; None: not known yet."""
        rates = sorted(self._rates.get(model) or ())
        if len(rates) < ENOUGH:
            return None
        slow = rates[math.ceil(0.95 * len(rates)) - 1]
        return max(FLOOR, TIMES * slow * (prompt_tokens + OVERHEAD))
