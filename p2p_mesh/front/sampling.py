"""The fields of both operations that say how tokens are drawn and when an answer ends. Pure."""

from __future__ import annotations

import re
from typing import Any

from p2p_mesh.core.records import MAX_BIASES, Sampling
from p2p_mesh.errors import RequestError
from p2p_mesh.http.body import Fields, integer, items, mapping, number, text, wrong

SEEDS = 2**63
"""Seeds are below this."""

_INT64 = integer(-(2**63), 2**63 - 1)
_PENALTY = number(-2, 2)
_BIAS = number(-100, 100)
_TOKEN_ID = re.compile(r"\d{1,10}", re.ASCII)


def sampling(fields: Fields, drawn: int) -> Sampling:
    """How the next token is drawn; `drawn` is the seed where the client chose none."""
    given = {
        "temperature": fields.take("temperature", number(0, 2)),
        "top_k": fields.take("top_k", integer(0, 2**20)),
        "top_p": fields.take("top_p", number(0, 1)),
        "min_p": fields.take("min_p", number(0, 1)),
        "repeat_penalty": one_of(
            fields, "repeat_penalty", "repetition_penalty", number(0, 10, above=True)
        ),
        "presence_penalty": fields.take("presence_penalty", _PENALTY),
        "frequency_penalty": fields.take("frequency_penalty", _PENALTY),
        "logit_bias": fields.take("logit_bias", _biases),
    }
    chosen = fields.take("seed", _INT64)
    # A negative seed is as good as any other; 63 bits of it are kept.
    given["seed"] = drawn if chosen is None else chosen % SEEDS
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def one_of(fields: Fields, name: str, other: str, read: Any) -> Any:
    """A field of two names, which must agree where both are given."""
    first, second = fields.take(name, read), fields.take(other, read)
    if first is not None and second is not None and first != second:
        named = fields.name(other)
        raise RequestError(f"{fields.name(name)} and {named} differ; give one", param=named)
    return second if first is None else first


def stop(value: Any, name: str) -> tuple[str, ...]:
    """Reads one stop string, or up to 16."""
    if isinstance(value, str):
        return (_stop_text(value, name),)
    if not isinstance(value, list):
        raise wrong(name, "a string or an array of strings", value)
    return items(_stop_text, 0, 16)(value, name)


def _stop_text(value: Any, name: str) -> str:
    found = text(value, name)
    if not 1 <= len(found) <= 256:
        raise RequestError(f"{name} must have 1 to 256 characters", param=name)
    return found


def _biases(value: Any, name: str) -> tuple[tuple[int, float], ...]:
    given = mapping(value, name)
    if len(given) > MAX_BIASES:
        raise RequestError(f"{name} may hold {MAX_BIASES} tokens at most", param=name)
    biases = {_token(key, name): _BIAS(bias, f"{name}[{key}]") for key, bias in given.items()}
    if len(biases) < len(given):
        raise RequestError(f"{name} names a token twice", param=name)
    return tuple(sorted(biases.items()))


def _token(key: str, name: str) -> int:
    if not _TOKEN_ID.fullmatch(key) or int(key) >= 2**31:
        raise RequestError(f"{name} must have token ids as names, not {key!a:.40}", param=name)
    return int(key)
