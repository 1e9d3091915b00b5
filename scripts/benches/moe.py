"""Mixtures of experts with random weights, larger than the memory that a bench leaves them: one
that routes its tokens evenly, the worst that can happen to a cache, and one that is skewed.

In the skewed one a number of each token's activation is the same for all tokens, and no layer
changes it. The router's rows of the favoured experts have a weight there, the others none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from p2p_mesh.testing.models import BOS, EOS, IM_END
from p2p_mesh.testing.vocabulary import sentence_pieces

Routing = Literal["random", "skewed"]
BLOCK, BLOCK_BYTES = 32, 34
"""Of Q8_0: numbers, and the bytes that hold them."""
_SPREAD = 73.6
"""Standard deviation of the numbers of a block, which are uniform."""
SHARED = 4.0
"""What stands in the place that all tokens share, where others are about 1."""
FAVOUR = 1.53
"""What is added to a favoured expert's logit, where others are about 1: enough for four fifths."""
GROWTH = 0.1
"""What a layer adds to an activation's square: the shared place counts for less then."""
MIXING = 0.25
"""What attention adds, over what a token brings. With more, the tokens of a text grow alike from
layer to layer, and choose the same experts.
"""


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int = 12
    width: int = 1024
    heads: int = 16
    kv_heads: int = 4
    feed: int = 512
    """Of one expert."""
    experts: int = 64
    used: int = 4
    vocabulary: int = 4096
    context: int = 2048

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def favoured(self) -> int:
        """A fifth of the experts."""
        return round(self.experts / 5)

    @property
    def expert_bytes(self) -> int:
        """Of one expert's three matrices."""
        return 3 * self.width * self.feed // BLOCK * BLOCK_BYTES


def model(cache: Path, say: Callable[[str], None], routing: Routing, shape: Shape) -> Path:
    """The model of that kind; written where it is missing."""
    path = cache / f"moe-{routing}-{shape.layers}x{shape.experts}x{shape.width}x{shape.feed}.gguf"
    if not path.exists():
        say(f"writing {path.stem}, once")
        part = path.with_suffix(".part")
        write(part, routing, shape)
        part.rename(path)
    return path


def write(path: Path, routing: Routing, shape: Shape) -> None:
    """The same bytes for the same arguments. Only one tensor at a time is in memory."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    _add_header(writer, shape)
    for tensor in tensors(routing, shape):
        kind = None if tensor.plain else gguf.GGMLQuantizationType.Q8_0
        dtype = np.dtype(np.float32 if tensor.plain else np.uint8)
        writer.add_tensor_info(tensor.name, tensor.stored, dtype, tensor.size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(0)
    for tensor in tensors(routing, shape):
        writer.write_tensor_data(tensor.draw(random))
    writer.close()


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Rows before columns."""
    plain: bool = False
    """float32 instead of Q8_0."""
    scale: float = 1.0
    """Where each row is to give numbers of that size, for those of size 1."""
    change: Callable[[Any], Any] = lambda data: data
    """What is done to its numbers, or its blocks, before they are written."""

    @property
    def stored(self) -> tuple[int, ...]:
        if self.plain:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // BLOCK * BLOCK_BYTES)

    @property
    def size(self) -> int:
        return int(np.prod(self.stored)) * (4 if self.plain else 1)

    def draw(self, random: Any) -> Any:
        size = self.scale * self.shape[-1] ** -0.5
        if self.plain:
            drawn = random.standard_normal(self.shape, dtype=np.float32) * np.float32(size)
            return self.change(drawn)
        blocks = np.empty((*self.shape[:-1], self.shape[-1] // BLOCK, BLOCK_BYTES), np.uint8)
        blocks[..., 2:] = random.integers(0, 256, (*blocks.shape[:-1], BLOCK), np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(size / _SPREAD).tobytes(), np.uint8)
        return self.change(blocks).reshape(self.stored)


def tensors(routing: Routing, shape: Shape) -> Iterator[Tensor]:
    """What the file holds, in its order."""
    skewed, width = routing == "skewed", shape.width
    table = (shape.vocabulary, width)
    root = width**0.5
    yield Tensor("token_embd.weight", table, plain=True, scale=root, change=_shared(skewed, SHARED))
    yield Tensor("output_norm.weight", (width,), plain=True, change=_ones(skewed, 0.0))
    yield Tensor("output.weight", table, scale=3.0, change=_endless)
    for layer in range(shape.layers):
        yield from _layer(shape, layer, skewed)


def _layer(shape: Shape, layer: int, skewed: bool) -> Iterator[Tensor]:
    width, head, begin = shape.width, shape.head, f"blk.{layer}."
    kv, feed = shape.kv_heads * head, (shape.experts, shape.feed, width)
    silent = _silent if skewed else _unchanged
    yield Tensor(f"{begin}attn_norm.weight", (width,), plain=True, change=_ones(skewed, 0.0))
    yield Tensor(f"{begin}attn_q.weight", (width, width))
    yield Tensor(f"{begin}attn_k.weight", (kv, width))
    yield Tensor(f"{begin}attn_v.weight", (kv, width))
    yield Tensor(f"{begin}attn_output.weight", (width, width), scale=MIXING, change=silent)
    for name in ("attn_q_norm", "attn_k_norm"):
        yield Tensor(f"{begin}{name}.weight", (head,), plain=True, change=_ones(False, 0.0))
    yield Tensor(f"{begin}ffn_norm.weight", (width,), plain=True, change=_ones(False, 0.0))
    favour = _favour(layer, shape) if skewed else _unchanged
    router = (shape.experts, width)
    yield Tensor(f"{begin}ffn_gate_inp.weight", router, plain=True, change=favour)
    for name in ("gate", "up"):
        yield Tensor(f"{begin}ffn_{name}_exps.weight", feed)
    down = (shape.experts, width, shape.feed)
    yield Tensor(f"{begin}ffn_down_exps.weight", down, change=silent)


def _unchanged(data: Any) -> Any:
    return data


def _ones(skewed: bool, shared: float) -> Callable[[Any], Any]:
    """A norm; the shared place is multiplied by `shared` in a skewed model."""

    def change(data: Any) -> Any:
        data[:] = 1.0
        data[0] = shared if skewed else 1.0
        return data

    return change


def _shared(skewed: bool, value: float) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        if skewed:
            data[:, 0] = value
        return data

    return change


def _silent(blocks: Any) -> Any:
    """Nothing is added in the shared place: the row that would has no size."""
    blocks[..., 0, :, :2] = 0
    return blocks


def _endless(blocks: Any) -> Any:
    """What ends an answer is never the likeliest."""
    blocks[[EOS, IM_END], :, :2] = 0
    return blocks


def _favour(layer: int, shape: Shape) -> Callable[[Any], Any]:
    """Other experts in each layer."""
    chosen = np.random.default_rng(layer).choice(shape.experts, shape.favoured, replace=False)

    def change(data: Any) -> Any:
        data[:, 0] = 0
        data[chosen, 0] = FAVOUR * (1 + GROWTH * layer) ** 0.5 / SHARED
        return data

    return change


def _add_header(writer: Any, shape: Shape) -> None:
    writer.add_name("random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_expert_feed_forward_length(shape.feed)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.used)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head)
    writer.add_vocab_size(shape.vocabulary)
    pieces, kinds = zip(*sentence_pieces(shape.vocabulary), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(place) for place in range(shape.vocabulary)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
