"""How the next token is drawn: the chain of samplers, and the seed of each draw.

Position i of choice c draws with a generator seeded by H(seed, c, i), so a draw depends on the
logits and on nothing that was drawn before: any node can go on with an answer. The recent tokens
that the penalties look at are those of the text, which an answer that is resumed also has.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from p2p_mesh.core.records import Sampling

PENALTY_WINDOW = 64
_RANDOM_SEED = 2**32 - 1  # LLAMA_DEFAULT_SEED: llama.cpp would draw a seed itself


@dataclass(frozen=True, slots=True)
class Bias:
    added: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Penalties:
    repeat: float
    frequency: float
    presence: float


@dataclass(frozen=True, slots=True)
class TopK:
    count: int


@dataclass(frozen=True, slots=True)
class TopP:
    share: float


@dataclass(frozen=True, slots=True)
class MinP:
    share: float


@dataclass(frozen=True, slots=True)
class Temperature:
    value: float


@dataclass(frozen=True, slots=True)
class Greedy:
    pass


@dataclass(frozen=True, slots=True)
class Draw:
    """The last of a chain; another one, of another seed, for each position."""


Link = Bias | Penalties | TopK | TopP | MinP | Temperature | Greedy | Draw


def chain(sampling: Sampling) -> Iterator[Link]:
    """The samplers in their order, llama.cpp's own, without those that would change nothing."""
    if sampling.logit_bias:
        yield Bias(sampling.logit_bias)
    if penalises(sampling):
        yield Penalties(
            sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        )
    if sampling.temperature == 0:
        yield Greedy()
        return
    if sampling.top_k > 0:
        yield TopK(sampling.top_k)
    if sampling.top_p < 1:
        yield TopP(sampling.top_p)
    if sampling.min_p > 0:
        yield MinP(sampling.min_p)
    if sampling.temperature != 1:
        yield Temperature(sampling.temperature)
    yield Draw()


def penalises(sampling: Sampling) -> bool:
    """Whether a draw depends on the tokens before it."""
    return (
        sampling.repeat_penalty != 1
        or sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
    )


def draw_seed(seed: int, choice: int, position: int) -> int:
    """The 32 bits that position of that choice draws with."""
    digest = blake2b(struct.pack("<QQQ", seed, choice, position), digest_size=4).digest()
    return min(int.from_bytes(digest, "little"), _RANDOM_SEED - 1)
