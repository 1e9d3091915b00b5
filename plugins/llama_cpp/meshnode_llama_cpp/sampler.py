"""Draws the tokens of one choice: llama.cpp's own samplers, and what they cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.grammar import Matcher
from meshnode_llama_cpp.library import L
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.sampling import (
    PENALTY_WINDOW,
    Bias,
    Draw,
    Greedy,
    Link,
    MinP,
    Penalties,
    Temperature,
    TopK,
    TopP,
    chain,
    draw_seed,
    penalises,
)
from p2p_mesh.core.records import Sampling, TokenLogprob


class Sampler:
    """`free` it."""

    def __init__(
        self,
        context: Context,
        sampling: Sampling,
        before: Sequence[int],
        *,
        choice: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        """`before`: the tokens that the penalties look back on, prompt and answer."""
        self._context = context
        self._seed, self._choice = sampling.seed, choice
        self.matcher = matcher
        links = list(chain(sampling))
        self._is_plain = links == [Greedy()]
        self._draws = isinstance(links[-1], Draw)
        params = L.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = L.llama_sampler_chain_init(params)
        for link in links:
            L.llama_sampler_chain_add(self._chain, _native(link, context.vocabulary))
        self._last: int = len(links) - 1
        if penalises(sampling):
            for token in before[-PENALTY_WINDOW:]:
                L.llama_sampler_accept(self._chain, token)

    def sample(self, row: int, position: int) -> int:
        """The token at that position of the answer, from that row of the last call."""
        if self.matcher is not None:
            self.matcher.mask(self._context.logits(row))
        token = self._draw(row, position)
        if self.matcher is not None:
            self.matcher.accept(token)
        return token

    def _draw(self, row: int, position: int) -> int:
        if self._is_plain:
            return int(self._context.logits(row).argmax())
        if self._draws:
            seed = draw_seed(self._seed, self._choice, position)
            L.llama_sampler_free(L.llama_sampler_chain_remove(self._chain, self._last))
            L.llama_sampler_chain_add(self._chain, L.llama_sampler_init_dist(seed))
        token: int = L.llama_sampler_sample(self._chain, self._context.handle, row)
        return token

    def free(self) -> None:
        L.llama_sampler_free(self._chain)


def logprob(logits: NDArray[np.float32], token: int, top: int, model: Model) -> TokenLogprob:
    """What the model thought of a token, and of the `top` likeliest in its place."""
    likeliest = float(logits.max())
    total = likeliest + float(
        np.log(np.exp(logits - likeliest, dtype=np.float32).sum(dtype=np.float64))
    )
    found = np.argpartition(logits, -top)[-top:] if top else np.empty(0, np.int64)
    ranked = sorted(found.tolist(), key=lambda one: (-logits[one], one))
    return TokenLogprob(
        token=token,
        piece=model.spelled(token),
        logprob=_below_zero(float(logits[token]) - total),
        top=tuple(
            (one, model.spelled(one), _below_zero(float(logits[one]) - total)) for one in ranked
        ),
    )


def _below_zero(value: float) -> float:
    """A logarithm of a probability, finite: JSON has no infinity."""
    return max(min(value, 0.0), -9999.0)


def _native(link: Link, vocabulary: int) -> Any:
    match link:
        case Bias(added):
            biases = (L.llama_logit_bias * len(added))(*added)
            return L.llama_sampler_init_logit_bias(vocabulary, len(added), biases)
        case Penalties(repeat, frequency, presence):
            return L.llama_sampler_init_penalties(
                vocabulary, PENALTY_WINDOW, repeat, frequency, presence
            )
        case TopK(count):
            return L.llama_sampler_init_top_k(count)
        case TopP(share):
            return L.llama_sampler_init_top_p(share, 1)
        case MinP(share):
            return L.llama_sampler_init_min_p(share, 1)
        case Temperature(value):
            return L.llama_sampler_init_temp(value)
        case Greedy():
            return L.llama_sampler_init_greedy()
        case Draw():
            return L.llama_sampler_init_dist(0)
