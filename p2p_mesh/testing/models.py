"""Tiny GGUF files for tests: models with random weights, and files that are out to do harm.

A file has the same bytes for the same arguments. What these models write says nothing sensible,
and says it fast: some 150,000 weights over a vocabulary of 512 pieces. There is one of each kind
of memory that llama.cpp has, and those that only read: embedders and rerankers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.testing.vocabulary import sentence_pieces, word_pieces
from p2p_mesh.testing.weights import (
    KERNEL,
    RANK,
    SMALL,
    STATE,
    Kind,
    Mixture,
    Router,
    Shape,
    Tensors,
    bert,
    decoder,
    mixture,
    yes_or_no,
)

__all__ = ["BOS", "CHATML", "CLS", "EOS", "GIGANTIC", "HONEST", "IM_END", "IM_START", "LOOPING",
           "SEP", "SMALL", "WINDOW", "Kind", "Lies", "Pooling", "Router", "Shape",
           "describe_model", "write_embedder", "write_model", "write_moe", "write_reranker",
           "write_truncated"]  # fmt: skip

Pooling = Literal["mean", "cls", "last", "rank"]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOPING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GIGANTIC = "{{ ('a' * 1000000) * 1000000 }}"

BOS, EOS, IM_START, IM_END = 1, 2, 3, 4
CLS, SEP = 2, 3
"""Of the embedders' vocabulary."""
WINDOW = 32
"""Tokens that a sliding layer sees."""
_ARCHITECTURES: Mapping[Kind, str] = {
    "llama": "llama", "sliding": "gemma3", "recurrent": "mamba", "hybrid": "lfm2",
}  # fmt: skip
_ROUTERS: Mapping[Router, str] = {"softmax": "qwen3moe", "grouped": "dots1"}
_PLAIN = ("token_types.weight", "position_embd.weight", "ffn_gate_inp.weight")
"""Matrices that are never multiplied, and routers, which nobody quantises."""
GROUPS, GROUPS_USED = 4, 2
"""Of the grouped experts."""
_POOLING: Mapping[Pooling, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}


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
    kind: Kind = "llama",
    template: str | None = CHATML,
    endless: bool = False,
    wide: bool = False,
    pooling: Pooling | None = None,
    lies: Lies = HONEST,
) -> ModelFile:
    """A model with random weights, whose answers end by chance, or do not (`endless`).
    The weights are Q8_0, or F64 (`wide`), which llama.cpp cannot compute with. One with `pooling`
    says of itself that it gives vectors.
    """
    writer = gguf.GGUFWriter(path, _ARCHITECTURES[kind])
    _add_header(writer, shape, lies)
    _add_kind(writer, shape, kind)
    _add_vocabulary(writer, shape.vocabulary)
    if pooling is not None:
        writer.add_pooling_type(gguf.PoolingType(_POOLING[pooling]))
        writer.add_add_eos_token(True)
    if template is not None:
        writer.add_chat_template(template)
    tensors = decoder(shape, kind, seed)
    if endless:
        tensors = _endless(tensors)
    if wide:
        tensors = ((name, data.astype(np.float64)) for name, data in tensors)
    _write(writer, tensors)
    return describe_model(path, shape, kind)


def write_embedder(
    path: Path, *, seed: int = 0, shape: Shape = SMALL, pooling: Pooling = "mean"
) -> ModelFile:
    """A BERT with random weights and a WordPiece vocabulary that spells any ASCII text; with the
    pooling `rank` it is a cross-encoder, which scores a pair of texts.
    """
    writer = gguf.GGUFWriter(path, "bert")
    _add_header(writer, shape, HONEST)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(_POOLING[pooling]))
    if pooling == "rank":
        writer.add_classifier_output_labels(["LABEL_0"])
    _add_word_pieces(writer, shape.vocabulary)
    _write(writer, bert(shape, seed, ranks=pooling == "rank"))
    return _describe(path, shape, "bert", 0)


def write_reranker(
    path: Path, *, seed: int = 0, shape: Shape = SMALL, template: str | None = None
) -> ModelFile:
    """A decoder that says yes or no of a pair of texts, in the manner of Qwen3's rerankers."""
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_header(writer, shape, HONEST)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_classifier_output_labels(["yes", "no"])
    _add_vocabulary(writer, shape.vocabulary)
    if template is not None:
        writer.add_string("tokenizer.chat_template.rerank", template)
    _write(writer, yes_or_no(shape, seed))
    return _describe(path, shape, "qwen3", shape.layers)


def write_moe(
    path: Path,
    *,
    experts: int = 16,
    used: int = 4,
    kind: Router = "softmax",
    feed: int = 32,
    skew: float = 0.0,
    seed: int = 0,
    shape: Shape = SMALL,
    template: str | None = CHATML,
    endless: bool = False,
) -> ModelFile:
    """A mixture of experts with random weights: every layer of `softmax`, all but the first of
    `grouped` have experts. With a `skew` the router likes the first experts best.
    """
    held = Mixture(experts, used, kind, feed, skew)
    if kind == "grouped":  # whose family has no heads that share keys
        shape = dataclasses.replace(shape, kv_heads=shape.heads)
    writer = gguf.GGUFWriter(path, _ROUTERS[kind])
    _add_header(writer, shape, HONEST)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    _add_mixture(writer, held)
    _add_vocabulary(writer, shape.vocabulary)
    if template is not None:
        writer.add_chat_template(template)
    tensors = mixture(shape, held, seed)
    _write(writer, _endless(tensors) if endless else tensors)
    layers = sum(map(held.has_experts, range(shape.layers)))
    return replace(
        _describe(path, shape, _ROUTERS[kind], shape.layers),
        experts=experts,
        experts_used=used,
        expert_layers=layers,
        # Three matrices of each, in blocks of 34 bytes for 32 numbers.
        expert_bytes=layers * experts * 3 * feed * shape.width * 34 // 32,
    )


def write_truncated(path: Path, *, keep: float = 0.5) -> ModelFile:
    """A good header, and only a part of the weights it promises."""
    whole = write_model(path)
    with path.open("r+b") as file:
        file.truncate(int(whole.size_bytes * keep))
    return describe_model(path, SMALL)


def describe_model(path: Path, shape: Shape, kind: Kind = "llama") -> ModelFile:
    """What reading the header of a written model would give."""
    attending = {"recurrent": 0, "hybrid": shape.layers // 2}.get(kind, shape.layers)
    described = _describe(path, shape, _ARCHITECTURES[kind], attending)
    state = {"recurrent": 2 * (KERNEL - 1 + STATE), "hybrid": KERNEL - 2}.get(kind, 0) * shape.width
    sliding = (shape.layers + 1) // 2 if kind == "sliding" else 0
    return replace(
        described,
        state_bytes=state * 4 * (shape.layers - attending),
        window=WINDOW if sliding else 0,
        window_bytes_per_token=2 * 2 * shape.kv_width * sliding,
    )


def _describe(path: Path, shape: Shape, architecture: str, attending: int) -> ModelFile:
    """`attending`: how many layers keep keys and values of each token."""
    return ModelFile(
        id=ModelId(path.stem),
        path=str(path),
        size_bytes=path.stat().st_size,
        architecture=architecture,
        context_length=shape.context,
        kv_bytes_per_token=2 * 2 * shape.kv_width * attending,
        heads=shape.heads,
    )


def _endless(tensors: Tensors) -> Tensors:
    for name, data in tensors:
        if name == "output.weight":
            data[[EOS, IM_END]] = 0  # never the likeliest, nor among the 40 likeliest
        yield name, data


def _write(writer: Any, tensors: Tensors) -> None:
    for name, data in tensors:
        _add_tensor(writer, name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: Any, name: str, data: Any) -> None:
    """Matrices as Q8_0 where their rows make whole blocks; float32 is what all else must be."""
    plain = data.ndim == 1 or data.shape[-1] % 32 or name.endswith(_PLAIN)
    if data.dtype == np.float32 and not plain:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, data)


def _add_header(writer: Any, shape: Shape, lies: Lies) -> None:
    heads = shape.heads if lies.heads is None else lies.heads
    writer.add_name("random")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers if lies.layers is None else lies.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head)
    writer.add_vocab_size(shape.vocabulary if lies.vocabulary is None else lies.vocabulary)


def _add_kind(writer: Any, shape: Shape, kind: Kind) -> None:
    """What the header says of the memory."""
    odd = [layer % 2 for layer in range(shape.layers)]
    writer.add_head_count_kv([shape.kv_heads * one for one in odd] if kind == "hybrid"
                             else shape.kv_heads)  # fmt: skip
    match kind:
        case "sliding":
            writer.add_key_length(shape.head)
            writer.add_value_length(shape.head)
            writer.add_sliding_window(WINDOW)
            writer.add_sliding_window_pattern([not one for one in odd])
        case "recurrent":
            writer.add_ssm_conv_kernel(KERNEL)
            writer.add_ssm_inner_size(2 * shape.width)
            writer.add_ssm_state_size(STATE)
            writer.add_ssm_time_step_rank(RANK)
        case "hybrid":
            writer.add_shortconv_l_cache(KERNEL - 1)


def _add_mixture(writer: Any, held: Mixture) -> None:
    writer.add_expert_count(held.experts)
    writer.add_expert_used_count(held.used)
    writer.add_expert_feed_forward_length(held.feed)
    if held.router == "grouped":
        writer.add_leading_dense_block_count(1)
        writer.add_expert_shared_count(1)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(True)
        writer.add_expert_weights_scale(1.5)
        writer.add_expert_group_count(GROUPS)
        writer.add_expert_group_used_count(GROUPS_USED)


def _add_vocabulary(writer: Any, count: int) -> None:
    pieces, kinds = zip(*sentence_pieces(count), strict=True)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(place) for place in range(count)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)


def _add_word_pieces(writer: Any, count: int) -> None:
    pieces, kinds = zip(*word_pieces(count), strict=True)
    writer.add_tokenizer_model("bert")
    writer.add_token_type_count(2)
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_mask_token_id(4)
