"""The networks that `train_demo.py` trains, in PyTorch: a dense one that llama.cpp knows as
"llama", and one with a mixture of experts in every layer, which it knows as "qwen3moe".

Tensors are named as in llama.cpp's files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary positions."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the network; all are multiples of 32 so that every matrix takes Q8_0."""

    vocab: int = 2048
    width: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    hidden: int = 512
    """Of the dense network's feed-forward part, or of one expert."""
    experts: int = 0
    used: int = 0
    """Experts that a token goes through, of each layer."""
    context: int = 2048
    rope_base: float = 10000.0
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


class Block(nn.Module):
    """One llama layer: grouped-query attention with rotary positions, then SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, kv_width = shape.width, shape.kv_heads * shape.head_width
        self.shape = shape
        self.attn_norm = nn.RMSNorm(width, shape.epsilon)
        self.attn_q = nn.Linear(width, width, bias=False)
        self.attn_k = nn.Linear(width, kv_width, bias=False)
        self.attn_v = nn.Linear(width, kv_width, bias=False)
        self.attn_output = nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, shape.epsilon)
        self.build()

    def build(self) -> None:
        """The parts in which this kind of layer differs from others."""
        width, hidden = self.shape.width, self.shape.hidden
        self.ffn_gate = nn.Linear(width, hidden, bias=False)
        self.ffn_up = nn.Linear(width, hidden, bias=False)
        self.ffn_down = nn.Linear(hidden, width, bias=False)

    def place(self, q: Tensor, k: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions."""
        return rotate(q, turn), rotate(k, turn)

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward part."""
        return self.ffn_down(F.silu(self.ffn_gate(x)) * self.ffn_up(x))

    def attend(self, x: Tensor, turn: Turn, mask: Tensor | None) -> Tensor:
        """Attention over x, shaped (batch, time, width); causal where there is no mask."""
        batch, length, width = x.shape

        def heads(linear: nn.Linear) -> Tensor:
            return linear(x).view(batch, length, -1, self.shape.head_width).transpose(1, 2)

        groups = self.shape.heads // self.shape.kv_heads
        q, k = self.place(heads(self.attn_q), heads(self.attn_k), turn)
        k, v = (t.repeat_interleave(groups, 1) for t in (k, heads(self.attn_v)))
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return self.attn_output(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: Tensor, turn: Turn, mask: Tensor | None) -> Tensor:
        x = x + self.attend(self.attn_norm(x), turn, mask)
        return x + self.feed(self.ffn_norm(x))


class Stack(nn.Module):
    """One matrix of every expert."""

    def __init__(self, count: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, rows, columns))


class MixtureBlock(Block):
    """One qwen3moe layer: heads are normalised, and a router chooses each token's experts."""

    def build(self) -> None:
        shape = self.shape
        count, hidden, width = shape.experts, shape.hidden, shape.width
        self.attn_q_norm = nn.RMSNorm(shape.head_width, shape.epsilon)
        self.attn_k_norm = nn.RMSNorm(shape.head_width, shape.epsilon)
        self.ffn_gate_inp = nn.Linear(width, count, bias=False)
        self.ffn_gate_exps = Stack(count, hidden, width)
        self.ffn_up_exps = Stack(count, hidden, width)
        self.ffn_down_exps = Stack(count, width, hidden)

    def place(self, q: Tensor, k: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        return rotate_halves(self.attn_q_norm(q), turn), rotate_halves(self.attn_k_norm(k), turn)

    def feed(self, x: Tensor) -> Tensor:
        """Tokens are sorted by expert, so that each expert multiplies its own in one call."""
        rows = x.reshape(-1, x.shape[-1])
        shares = self.ffn_gate_inp(rows).softmax(-1)
        weights, chosen = shares.topk(self.shape.used)
        weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort()
        counts = chosen.flatten().bincount(minlength=self.shape.experts)
        self.imbalance = self.shape.experts * (counts / counts.sum()) @ shares.mean(0)
        at = order // self.shape.used
        stacks = (self.ffn_gate_exps.weight, self.ffn_up_exps.weight, self.ffn_down_exps.weight)
        parts = [
            (F.silu(part @ gate.T) * (part @ up.T)) @ down.T
            for part, gate, up, down in zip(rows[at].split(counts.tolist()), *stacks, strict=True)
        ]
        scaled = torch.cat(parts) * weights.flatten()[order, None]
        return torch.zeros_like(rows).index_add(0, at, scaled).view_as(x)


class Network(nn.Module):
    """The whole network; the embedding also serves as the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        block = MixtureBlock if shape.experts else Block
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        rates = shape.rope_base ** (-torch.arange(0, shape.head_width, 2) / shape.head_width)
        angles = torch.outer(torch.arange(shape.context), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                # Layers that write to the residual stream start silent.
                silent = "attn_output." in name or "ffn_down" in name
                nn.init.normal_(weight, std=0.0 if silent else shape.width**-0.5 / 2)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        turn = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, turn, mask)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def imbalance(self) -> Tensor | float:
        """How unevenly the last batch's tokens went to experts; one a layer where evenly."""
        return sum(block.imbalance for block in self.blk if isinstance(block, MixtureBlock))


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """Rotary positions on neighbouring channels, the pairing llama.cpp calls "norm"."""
    cos, sin = turn
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def rotate_halves(x: Tensor, turn: Turn) -> Tensor:
    """Rotary positions on channels half a head apart, the pairing llama.cpp calls "neox"."""
    cos, sin = turn
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, low * sin + high * cos), -1)
