"""Log-probabilities as OpenAI's clients read them: in chat's form, and in that of completions.
Pure.

What a token spells need not be whole characters. OpenAI writes such bytes as escapes, `\\xf0\\x9f`,
in completions after `bytes:`; so do we.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from p2p_mesh.core.records import TokenLogprob

UNLIKELY = -9999.0
"""What OpenAI gives for a token that has no chance, and JSON no infinity for."""


def chat_form(found: Iterable[TokenLogprob], top: int) -> dict[str, Any]:
    """With so many of the likeliest tokens."""
    content = [
        {
            **_token(one.piece, one.logprob),
            "top_logprobs": [_token(piece, log) for _, piece, log in one.top[:top]],
        }
        for one in found
    ]
    return {"content": content, "refusal": None}


def _token(piece: bytes, log: float | None) -> dict[str, Any]:
    return {"token": spelled(piece), "logprob": _finite(log), "bytes": list(piece)}


def spelled(piece: bytes) -> str:
    """A token as text, its bytes as escapes where they are no text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)


def _finite(log: float | None) -> float:
    return UNLIKELY if log is None else max(log, UNLIKELY)


class TextForm:
    """The form of completions, whose offsets count the characters of one choice from its start."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(self, found: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens of the choice."""
        likeliest = [self._likeliest(one) for one in found]
        return {
            "tokens": [_legacy(one.piece) for one in found],
            "token_logprobs": [
                None if one.logprob is None else _finite(one.logprob) for one in found
            ],
            "top_logprobs": likeliest if self._top else None,
            "text_offset": [self._advance(one.piece) for one in found],
        }

    def _likeliest(self, one: TokenLogprob) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        # Tokens of one spelling are one name here: the likelier one has it.
        rising = reversed(one.top[: self._top])
        return {_legacy(piece): _finite(log) for _, piece, log in rising}

    def _advance(self, piece: bytes) -> int:
        before = self._offset
        self._offset += len(self._decoder.decode(piece))
        return before


def _legacy(piece: bytes) -> str:
    text = spelled(piece)
    return f"bytes:{text}" if text.encode() != piece else text
