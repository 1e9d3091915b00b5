"""The weights of models that tests write: random, in the layouts of llama.cpp's architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["llama", "sliding", "recurrent", "hybrid"]
"""What a model remembers: all it read, in every second layer the end of it alone, a state of one
size, or that in every second layer.
"""
Router = Literal["softmax", "grouped"]
"""How a mixture of experts routes: qwen3moe's way; or deepseek's, as dots1 has it: sigmoid, with a
bias for the choice alone, among the best of several groups, and an expert that all tokens share.
"""
Tensors = Iterator[tuple[str, Any]]

STATE, KERNEL, RANK = 16, 4, 4
"""Of a recurrent layer."""


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed: int = 128
    vocabulary: int = 512
    context: int = 512

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.head * self.kv_heads


SMALL = Shape()


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of each layer; in the grouped kind the first layer has none."""

    experts: int = 16
    used: int = 4
    router: Router = "softmax"
    feed: int = 32
    """Of one expert."""
    skew: float = 0.0
    """How much more the router likes the first experts than the last, whatever it reads. At 0.25 a
    fifth of the experts take more than four fifths of the choices.
    """

    def has_experts(self, layer: int) -> bool:
        return self.router == "softmax" or layer > 0


def decoder(shape: Shape, kind: Kind, seed: int) -> Tensors:
    """Names and float32 values, in the layout of the kind's architecture."""
    weights = _Weights(seed)
    width = shape.width
    # gemma3 multiplies by the square root itself
    scale = 1 if kind == "sliding" else width**0.5
    norm = "token_embd_norm" if kind == "hybrid" else "output_norm"
    yield "token_embd.weight", weights.matrix(shape.vocabulary, width, scale)
    yield f"{norm}.weight", np.ones(width, np.float32)
    yield "output.weight", weights.matrix(shape.vocabulary, width, 3)
    for layer in range(shape.layers):
        for name, data in _LAYERS[kind](shape, layer, weights):
            yield f"blk.{layer}.{name}", data


def _llama_layer(shape: Shape, _: int, weights: _Weights) -> Tensors:
    yield from _attention(shape, weights)
    yield from _feed(shape, weights)


def _sliding_layer(shape: Shape, layer: int, weights: _Weights) -> Tensors:
    yield from _llama_layer(shape, layer, weights)
    yield from _ones(("attn_q_norm", "attn_k_norm"), shape.head)
    yield from _ones(("post_attention_norm", "post_ffw_norm"), shape.width)


def _recurrent_layer(shape: Shape, _: int, weights: _Weights) -> Tensors:
    inner = 2 * shape.width
    # A hundred tokens later, the slowest of them still remembers a half.
    rates = np.tile(np.arange(1, STATE + 1, dtype=np.float32) / 100, (inner, 1))
    yield from _ones(("attn_norm",), shape.width)
    yield "ssm_in.weight", weights.matrix(2 * inner, shape.width)
    yield "ssm_conv1d.weight", weights.matrix(inner, KERNEL)
    yield "ssm_conv1d.bias", np.zeros(inner, np.float32)
    yield "ssm_x.weight", weights.matrix(RANK + 2 * STATE, inner)
    yield "ssm_dt.weight", weights.matrix(inner, RANK)
    yield "ssm_dt.bias", np.zeros(inner, np.float32)
    yield "ssm_a", -rates
    yield "ssm_d", np.ones(inner, np.float32)
    yield "ssm_out.weight", weights.matrix(shape.width, inner)


def _hybrid_layer(shape: Shape, layer: int, weights: _Weights) -> Tensors:
    width = shape.width
    if layer % 2:
        yield from _attention(shape, weights)
        yield from _ones(("attn_q_norm", "attn_k_norm"), shape.head)
    else:
        yield from _ones(("attn_norm",), width)
        yield "shortconv.conv.weight", weights.matrix(width, KERNEL - 1)
        yield "shortconv.in_proj.weight", weights.matrix(3 * width, width)
        yield "shortconv.out_proj.weight", weights.matrix(width, width)
    yield from _feed(shape, weights)


_LAYERS: Mapping[Kind, Callable[[Shape, int, _Weights], Tensors]] = {
    "llama": _llama_layer, "sliding": _sliding_layer, "recurrent": _recurrent_layer,
    "hybrid": _hybrid_layer,
}  # fmt: skip


def _attention(shape: Shape, weights: _Weights) -> Tensors:
    yield from _ones(("attn_norm",), shape.width)
    yield "attn_q.weight", weights.matrix(shape.width, shape.width)
    yield "attn_k.weight", weights.matrix(shape.kv_width, shape.width)
    yield "attn_v.weight", weights.matrix(shape.kv_width, shape.width)
    yield "attn_output.weight", weights.matrix(shape.width, shape.width)


def _feed(shape: Shape, weights: _Weights) -> Tensors:
    yield from _ones(("ffn_norm",), shape.width)
    yield "ffn_gate.weight", weights.matrix(shape.feed, shape.width)
    yield "ffn_up.weight", weights.matrix(shape.feed, shape.width)
    yield "ffn_down.weight", weights.matrix(shape.width, shape.feed)


def mixture(shape: Shape, experts: Mixture, seed: int) -> Tensors:
    """Names and float32 values of a mixture of experts."""
    weights, width = _Weights(seed), shape.width
    embeddings = weights.matrix(shape.vocabulary, width, width**0.5)
    # What all tokens have in common is what a router can go by that likes some experts always.
    embeddings[:, 0] = width**0.5 if experts.skew else embeddings[:, 0]
    yield "token_embd.weight", embeddings
    yield "output_norm.weight", np.ones(width, np.float32)
    yield "output.weight", weights.matrix(shape.vocabulary, width, 3)
    for layer in range(shape.layers):
        tensors = _mixture_layer(shape, experts, layer, weights)
        yield from ((f"blk.{layer}.{name}", data) for name, data in tensors)


def _mixture_layer(shape: Shape, experts: Mixture, layer: int, weights: _Weights) -> Tensors:
    yield from _attention(shape, weights)
    yield from _ones(("attn_q_norm", "attn_k_norm"), shape.head)
    if not experts.has_experts(layer):
        yield from _feed(shape, weights)
        return
    yield from _ones(("ffn_norm",), shape.width)
    yield "ffn_gate_inp.weight", _router(shape, experts, weights)
    count, feed, width = experts.experts, experts.feed, shape.width
    yield "ffn_gate_exps.weight", weights.matrix(count * feed, width).reshape(count, feed, width)
    yield "ffn_up_exps.weight", weights.matrix(count * feed, width).reshape(count, feed, width)
    yield "ffn_down_exps.weight", weights.matrix(count * width, feed).reshape(count, width, feed)
    if experts.router == "grouped":
        yield "exp_probs_b.bias", weights.matrix(count, 1, 0.1)[:, 0]
        yield "ffn_gate_shexp.weight", weights.matrix(feed, width)
        yield "ffn_up_shexp.weight", weights.matrix(feed, width)
        yield "ffn_down_shexp.weight", weights.matrix(width, feed)


def _router(shape: Shape, experts: Mixture, weights: _Weights) -> Any:
    rows = weights.matrix(experts.experts, shape.width, shape.width**0.25)
    rows[:, 0] += experts.skew * np.linspace(1, -1, experts.experts, dtype=np.float32)
    return rows


def _ones(names: tuple[str, ...], size: int) -> Tensors:
    for name in names:
        yield f"{name}.weight", np.ones(size, np.float32)


def yes_or_no(shape: Shape, seed: int) -> Tensors:
    """A qwen3 that has no output but a head of two classes."""
    for name, data in decoder(shape, "llama", seed):
        if name != "output.weight":
            yield name, data
    for layer in range(shape.layers):
        yield from _ones((f"blk.{layer}.attn_q_norm", f"blk.{layer}.attn_k_norm"), shape.head)
    yield "cls.output.weight", _Weights(seed + 1).matrix(2, shape.width)


def bert(shape: Shape, seed: int, *, ranks: bool) -> Tensors:
    """One that gives vectors, or (`ranks`) a score."""
    width, weights = shape.width, _Weights(seed)
    yield "token_embd.weight", weights.matrix(shape.vocabulary, width, width**0.5)
    yield "token_types.weight", weights.matrix(2, width)
    yield "position_embd.weight", weights.matrix(shape.context, width, width**0.5)
    yield from _shifted("token_embd_norm", width)
    for layer in range(shape.layers):
        for name, data in _bert_layer(shape, weights):
            yield f"blk.{layer}.{name}", data
    if ranks:
        yield "cls.weight", weights.matrix(width, width)
        yield "cls.output.weight", weights.matrix(1, width)


def _bert_layer(shape: Shape, weights: _Weights) -> Tensors:
    width = shape.width
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield f"{name}.weight", weights.matrix(width, width)
        yield f"{name}.bias", np.zeros(width, np.float32)
    yield from _shifted("attn_output_norm", width)
    yield "ffn_up.weight", weights.matrix(shape.feed, width)
    yield "ffn_down.weight", weights.matrix(width, shape.feed)
    yield from _shifted("layer_output_norm", width)


def _shifted(name: str, size: int) -> Tensors:
    yield f"{name}.weight", np.ones(size, np.float32)
    yield f"{name}.bias", np.zeros(size, np.float32)


class _Weights:
    """Random matrices, of which each keeps the size of what it multiplies."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int, scale: float = 1) -> Any:
        drawn = self._random.standard_normal((rows, columns), dtype=np.float32)
        return drawn * np.float32(columns**-0.5) * np.float32(scale)
