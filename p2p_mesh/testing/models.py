"""Tiny GGUF files for tests: a llama with random weights, and files that are out to do harm.

`write_model` gives the same bytes for the same arguments. What it writes says nothing sensible,
and says it fast: some 150,000 weights over a vocabulary of 512 pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GIGANTIC = "{{ ('a' * 1000000) * 1000000 }}"

BOS, EOS, IM_START, IM_END = 1, 2, 3, 4
_WORDS = ("the", "a", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on")
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    feed: int = 128
    vocabulary: int = 512
    context: int = 512


SMALL = Shape()


@dataclass(frozen=True, slots=True)
class Lies:
    """What the header says instead of the truth."""

    heads: int | None = None
    layers: int | None = None
    vocabulary: int | None = None


HONEST = Lies()


def write_model(
    path: Path,
    *,
    seed: int = 0,
    shape: Shape = SMALL,
    template: str | None = CHATML,
    endless: bool = False,
    wide: bool = False,
    lies: Lies = HONEST,
) -> ModelFile:
    """A llama with random weights, whose answers end by chance, or do not (`endless`).
    The weights are Q8_0, or F64 (`wide`), which llama.cpp cannot compute with.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_header(writer, shape, lies)
    _add_vocabulary(writer, shape.vocabulary)
    if template is not None:
        writer.add_chat_template(template)
    for name, data in _tensors(shape, np.random.default_rng(seed)):
        if endless and name == "output.weight":
            data[[EOS, IM_END]] = 0  # never the likeliest, nor among the 40 likeliest
        if wide:
            writer.add_tensor(name, data.astype(np.float64))
        elif data.ndim == 1:
            writer.add_tensor(name, data)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return describe_model(path, shape)


def write_truncated(path: Path, *, keep: float = 0.5) -> ModelFile:
    """A good header, and only a part of the weights it promises."""
    whole = write_model(path)
    with path.open("r+b") as file:
        file.truncate(int(whole.size_bytes * keep))
    return describe_model(path, SMALL)


def describe_model(path: Path, shape: Shape) -> ModelFile:
    """What reading the header of a written model would give."""
    head = shape.width // shape.heads
    return ModelFile(
        id=ModelId(path.stem),
        path=str(path),
        size_bytes=path.stat().st_size,
        architecture="llama",
        context_length=shape.context,
        kv_bytes_per_token=2 * 2 * shape.layers * shape.kv_heads * head,
    )


def _add_header(writer: Any, shape: Shape, lies: Lies) -> None:
    heads = shape.heads if lies.heads is None else lies.heads
    writer.add_name("random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers if lies.layers is None else lies.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary if lies.vocabulary is None else lies.vocabulary)


def _pieces(count: int) -> Iterator[tuple[str, int]]:
    """An SPM vocabulary: any text can be spelled with it, byte by byte if need be."""
    yield "<unk>", _UNKNOWN
    for control in ("<s>", "</s>", "<|im_start|>", "<|im_end|>"):
        yield control, _CONTROL
    for byte in range(256):
        yield f"<0x{byte:02X}>", _BYTE
    for letter in map(chr, (0x2581, *range(33, 127))):
        yield letter, _NORMAL
    for word in _WORDS:
        yield f"\u2581{word}", _NORMAL
    for number in range(count):
        yield f"\u2581w{number}", _NORMAL


def _add_vocabulary(writer: Any, count: int) -> None:
    pieces, kinds = zip(*(piece for piece, _ in zip(_pieces(count), range(count), strict=False)),
                        strict=True)  # fmt: skip
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(place) for place in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _tensors(shape: Shape, random: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Names and float32 values, in the layout of the llama architecture."""
    width, kv_width = shape.width, shape.width // shape.heads * shape.kv_heads

    def matrix(rows: int, columns: int) -> Any:
        scale = np.float32(columns**-0.5)
        return random.standard_normal((rows, columns), dtype=np.float32) * scale

    yield "token_embd.weight", matrix(shape.vocabulary, width) * np.float32(width**0.5)
    yield "output_norm.weight", np.ones(width, np.float32)
    yield "output.weight", matrix(shape.vocabulary, width) * np.float32(3)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", np.ones(width, np.float32)
        yield block + "attn_q.weight", matrix(width, width)
        yield block + "attn_k.weight", matrix(kv_width, width)
        yield block + "attn_v.weight", matrix(kv_width, width)
        yield block + "attn_output.weight", matrix(width, width)
        yield block + "ffn_norm.weight", np.ones(width, np.float32)
        yield block + "ffn_gate.weight", matrix(shape.feed, width)
        yield block + "ffn_up.weight", matrix(shape.feed, width)
        yield block + "ffn_down.weight", matrix(width, shape.feed)
