"""What routers choose of all experts of a model, worked out beside llama.cpp, from what they are
given there: logits, how likely each expert is, which are chosen, and the shares of their weights.

Families make likelihoods of logits in one of few ways (`RULES`). Which one it is, is not looked up:
of a shard's own experts llama.cpp shows what it chose, and the rule is the one that comes to the
same (`rule_of`).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2p_mesh.core.experts.known import shard_of
from p2p_mesh.core.experts.layout import Layer, Layout, layout
from p2p_mesh.core.experts.routers import TYPES
from p2p_mesh.core.gguf import Header, Tensor, read_header
from p2p_mesh.errors import ModelError

Floats = NDArray[np.float32]
Stored = NDArray[Any]
"""Weights as they stand in a file: float32, float16, or bfloat16 as numbers of 16 bits."""
Shares = NDArray[np.float64]
"""By token and expert, with zeros for those that are not chosen; of each token they add up to 1."""
Rule = Callable[[Floats], Floats]
"""How likely each expert is, by the logits of all."""

_FITS = 0.02
"""Of the routing may go elsewhere than where llama.cpp sent it: devices round, and routers are now
and then undecided between two. A wrong rule is off by far more.
"""
_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


@dataclass(frozen=True, slots=True)
class Router:
    """Of one layer."""

    weights: Stored
    """By expert."""
    used: int
    groups: int = 1
    groups_used: int = 1
    bias: Floats | None = None
    """Added to the logits,"""
    leaning: Floats | None = None
    """and to the likelihoods, where experts are chosen by them."""

    def of(self, experts: Sequence[int]) -> Router:
        """One that knows no others."""
        chosen = list(experts)
        return replace(
            self,
            weights=self.weights[chosen],
            bias=None if self.bias is None else self.bias[chosen],
            leaning=None if self.leaning is None else self.leaning[chosen],
        )

    def shares(self, given: Floats, rule: Rule) -> Shares:
        """Of the experts that it chooses, for each row that it is given."""
        logits = _product(given, self.weights)
        if self.bias is not None:
            logits = logits + self.bias
        with np.errstate(over="ignore", invalid="ignore"):
            likely = rule(logits)
        chosen = self._chosen(likely if self.leaning is None else likely + self.leaning)
        weights = np.maximum(np.take_along_axis(likely, chosen, 1).astype(np.float64), 1e-30)
        found = np.zeros(logits.shape, np.float64)
        np.put_along_axis(found, chosen, weights / weights.sum(1, keepdims=True), 1)
        return found

    def _chosen(self, scores: Floats) -> NDArray[np.intp]:
        if self.groups > 1:
            scores = _in_best_groups(scores, self.groups, self.groups_used)
        return np.argsort(-scores, 1, kind="stable")[:, : self.used]


def _in_best_groups(scores: Floats, groups: int, used: int) -> Floats:
    """Without the experts of other groups than the best, which are judged by their best two."""
    grouped = scores.reshape(len(scores), groups, -1)
    worth = np.sort(grouped, 2)[:, :, -2:].sum(2)
    best = np.argsort(-worth, 1, kind="stable")[:, :used]
    found = np.full_like(grouped, -np.inf)
    rows = np.arange(len(scores))[:, None]
    found[rows, best] = grouped[rows, best]
    return found.reshape(scores.shape)


def _product(given: Floats, weights: Stored) -> Floats:
    """As llama.cpp computes it: what is multiplied by short weights is rounded as they are."""
    if weights.dtype == np.float16:
        given = given.astype(np.float16).astype(np.float32)
    elif weights.dtype == np.uint16:
        given = _exact(_rounded(given))
    found: Floats = given @ _exact(weights).T
    return found


def _exact(stored: Stored) -> Floats:
    if stored.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _rounded(given: Floats) -> Stored:
    """To bfloat16, to the nearest, ties to even."""
    words = np.ascontiguousarray(given).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def _softmax(logits: Floats) -> Floats:
    """Also of those that take the softmax of the chosen logits alone: it has the same shares."""
    likely = np.exp(logits - logits.max(1, keepdims=True))
    shares: Floats = likely / likely.sum(1, keepdims=True)
    return shares


def _sigmoid(logits: Floats) -> Floats:
    likely: Floats = np.reciprocal(1 + np.exp(-logits))
    return likely


def _sqrt_softplus(logits: Floats) -> Floats:
    likely: Floats = np.sqrt(np.logaddexp(logits, 0, dtype=np.float32))
    return likely


RULES: Sequence[Rule] = (_softmax, _sigmoid, _sqrt_softplus)


def rule_of(routers: Mapping[int, tuple[Router, Floats, Shares]]) -> Rule | None:
    """The one by which these routers, given those rows, choose as llama.cpp did; None: no rule
    that is known. Of each layer: the router of the shard, what it was given, and what it chose.
    """
    off = {rule: _off(rule, routers) for rule in RULES}
    best = min(off, key=lambda rule: off[rule])
    return best if off[best] <= _FITS else None


def _off(rule: Rule, routers: Mapping[int, tuple[Router, Floats, Shares]]) -> float:
    """The share of the routing that goes elsewhere; 1 where that cannot be told."""
    apart = [
        np.abs(router.shares(given, rule) - shares).sum(1).mean() / 2
        for router, given, shares in routers.values()
    ]
    found = float(np.mean(apart)) if apart else 1.0
    return found if np.isfinite(found) else 1.0


# From files


@dataclass(frozen=True, slots=True)
class Routers:
    """Of the whole model, and which experts of each layer a shard has."""

    experts: int
    layers: tuple[int, ...]
    """Those that have experts, rising."""
    whole: Mapping[int, Router]
    """Of some of them, or of all."""
    own: Mapping[int, tuple[int, ...]]


def read(path: Path, shard: Path) -> Routers:
    """Those in a file of routers, for the shard in another one. Raises ModelError."""
    try:
        about, _ = _opened(shard)
        header, data = _opened(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} or {shard} cannot be read: {error}") from error
    known, found = shard_of(about), layout(about)
    if known is None or found is None:
        raise ModelError(f"{shard} is no expert shard")
    held = {one.name: one for one in header.tensors}
    whole = {
        layer.number: _router(layer, found, known.of, _Tensors(held, data))
        for layer in found.layers
        if f"blk.{layer.number}.ffn_gate_inp.weight" in held
    }
    own = dict(zip(found.numbers, known.experts, strict=True))
    return Routers(known.of, found.numbers, whole, own)


def _opened(path: Path) -> tuple[Header, mmap.mmap]:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return read_header(data, len(data)), data


@dataclass(frozen=True, slots=True)
class _Tensors:
    held: Mapping[str, Tensor]
    data: mmap.mmap

    def array(self, name: str) -> Stored | None:
        """Its numbers, which stay in the file until they are used; None: there is none."""
        if (one := self.held.get(name)) is None:
            return None
        kind = np.dtype(_DTYPES[TYPES[one.type]])
        flat = np.frombuffer(self.data, kind, one.size // kind.itemsize, one.offset)
        return flat.reshape(one.shape[::-1])

    def floats(self, *names: str) -> Floats | None:
        found = next((one for name in names if (one := self.array(name)) is not None), None)
        return None if found is None else _exact(found)


def _router(layer: Layer, found: Layout, experts: int, tensors: _Tensors) -> Router:
    block = f"blk.{layer.number}"
    weights = tensors.array(f"{block}.ffn_gate_inp.weight")
    bias = tensors.floats(f"{block}.ffn_gate_inp.bias")
    leaning = tensors.floats(f"{block}.exp_probs_b.bias", f"{block}.exp_probs_b")
    assert weights is not None
    short = [one for one in (bias, leaning) if one is not None and one.shape != (experts,)]
    if weights.ndim != 2 or len(weights) != experts or short:
        raise ModelError(f"the router of layer {layer.number} is not of {experts} experts")
    return Router(weights, layer.used, found.groups, found.groups_used, bias, leaning)
