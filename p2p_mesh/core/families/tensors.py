"""The tensors of a stage's file that belong to no layer.

A stage without a vocabulary holds zeros in their place: one row for the embedding table and the
head, and a norm of zeros. The graph wants them to be there; what leaves the stage does not depend
on them. The last stage holds one matrix of the vocabulary's size where that is possible: a file
without a head uses its embedding table as the head, so the head is put where the table would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from p2p_mesh.core.families.family import Family
from p2p_mesh.core.families.recipe import VOCABULARY, Renamed
from p2p_mesh.core.gguf import Header

TABLE, HEAD = "token_embd.weight", "output.weight"
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_ENTRY = ("position_embd.weight", "token_embd_norm.weight", "token_embd_norm.bias")
_LOOKED_UP = ("per_layer_token_embd.weight",)
LOOKING = (
    "ple_key", "ple_value", "ple_norm_key", "ple_norm_query", "ple_norm_conv", "ple_conv1d",
)  # fmt: skip
"""The tensors of a layer that looks tokens up; in a filler it does not."""
_POSITIONED = ("gpt2", "starcoder")


@dataclass(frozen=True, slots=True)
class Part:
    """Which part of the model a file is of."""

    start: int
    end: int
    total: int
    has_vocabulary: bool
    needs_tokens: bool

    @property
    def is_last(self) -> bool:
        return self.end == self.total

    @property
    def has_table(self) -> bool:
        """Whether tokens are looked up in it."""
        return self.has_vocabulary and (not self.is_last or self.start == 0 or self.needs_tokens)


def shared(part: Part, header: Header) -> tuple[str, ...]:
    if part.is_last:
        return ("*",)
    if part.start > 0:
        return (*_ROPE, TABLE) if part.has_table else _ROPE
    entry = tuple(name for name in _ENTRY if not _is_norm_of_lfm2(name, header))
    return (*_ROPE, *entry, *_LOOKED_UP, TABLE) if part.has_table else (*_ROPE, *entry)


def _is_norm_of_lfm2(name: str, header: Header) -> bool:
    """That family keeps the norm before its head under the name of one behind its table."""
    return header.architecture in ("lfm2", "lfm2moe") and name.startswith("token_embd_norm")


def renamed(
    part: Part, header: Header, family: Family, blocks: Sequence[int]
) -> tuple[Renamed, ...]:
    found: list[Renamed] = []
    width = header.number("embedding_length")
    if not part.is_last:
        found += _ending(part, header, family, width)
    if not part.has_table:
        found += _beginning(part, family, width)
    if part.start > 0:
        found += _neutral(part, header, width)
    if header.architecture == "minicpm3":
        found += _rescaled(part.total, blocks)
    return tuple(found)


def _zeros(name: str, *shape: int) -> Renamed:
    return Renamed(name, "", "zeros", shape=shape)


def _beginning(part: Part, family: Family, width: int) -> Iterator[Renamed]:
    """In place of the table where nothing is looked up."""
    if not part.is_last:
        yield _zeros(TABLE, width, VOCABULARY)
    elif family.head == "optional":
        yield Renamed(TABLE, HEAD, otherwise=TABLE)
    elif family.head != "tied":
        yield _zeros(TABLE, width, VOCABULARY)
        yield Renamed(HEAD, HEAD)  # it must be there: the zeros would take its place


def _ending(part: Part, header: Header, family: Family, width: int) -> Iterator[Renamed]:
    """In place of the head and what is before it."""
    if family.head == "required":
        yield _zeros(HEAD, width, VOCABULARY)
    if family.head_bias:
        yield _zeros("output.bias", VOCABULARY)
    if family.norm:
        yield _zeros(family.norm, width)
    if family.norm_bias:
        yield _zeros("output_norm.bias", width)
    if header.architecture == "kimi-k3" and header.number("attn_res.block_size"):
        yield _zeros("output_res_score.weight", width)
    streams = header.number("hyper_connection.count")
    if family.hyper == "full":
        yield _zeros("output_hc_fn.weight", streams * width, streams)
        yield _zeros("output_hc_base.weight", streams)
        yield _zeros("output_hc_scale.weight", 1)
    if family.hyper == "low_rank":
        rank = header.number("hyper_connection.low_rank")
        yield _zeros("output_hc_norm.weight", width, streams)
        yield _zeros("output_hc_down.weight", streams * width, rank)
        yield _zeros("output_hc_up.weight", rank, streams * width)


def _neutral(part: Part, header: Header, width: int) -> Iterator[Renamed]:
    """In place of what the first stage adds to its input."""
    if header.architecture in _POSITIONED:
        yield _zeros("position_embd.weight", width, header.number("context_length"))
    if header.architecture == "bloom":
        yield _zeros("token_embd_norm.weight", width)
        yield _zeros("token_embd_norm.bias", width)


def _rescaled(total: int, blocks: Sequence[int]) -> Iterator[Renamed]:
    """minicpm3 scales what a layer adds by the number of layers of its file; this undoes it."""
    factor = math.sqrt(len(blocks) / total)
    for at, block in enumerate(blocks):
        for name in ("attn_output.weight", "ffn_down.weight"):
            yield Renamed(f"blk.{at}.{name}", f"blk.{block}.{name}", factor=factor)


def left_out(part: Part, header: Header, family: Family, blocks: Sequence[int]) -> tuple[str, ...]:
    """What the sources may hold, and this file must not."""
    names: list[str] = []
    if part.start > 0 and f"{header.architecture}.ple.layers" in header.metadata:
        names += _LOOKED_UP
        names += [f"blk.{at}.{name}.weight" for at in range(len(blocks)) for name in LOOKING]
    if part.is_last and part.start > 0:
        if not part.has_table and family.head == "optional":
            names.append(HEAD)
        if header.architecture == "mpt":
            names.append("position_embd.weight")
    return tuple(names)
