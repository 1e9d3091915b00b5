"""What a model is for, by what its file says of itself: it writes, gives vectors, or ranks.

Pure, and without llama.cpp: the node asks as well as the engine.
"""

from __future__ import annotations

from typing import Literal

from p2p_mesh.errors import ModelError

Role = Literal["generate", "embed", "rerank"]

UNSPECIFIED, NONE, MEAN, CLS, LAST, RANK = -1, 0, 1, 2, 3, 4
"""LLAMA_POOLING_TYPE_*, as `<architecture>.pooling_type` has them."""

ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed",
    "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe",
})  # fmt: skip
"""Architectures that read a text as a whole, from both ends, and write none."""

_HALVES = frozenset({"t5", "t5encoder"})  # an encoder whose vectors are for a decoder


def role(architecture: str, pooling: int = UNSPECIFIED) -> Role:
    """What a model of that architecture and pooling is for. Raises ModelError where it is for
    nothing that is served here.
    """
    if architecture in _HALVES:
        raise ModelError(f"the architecture {architecture} reads for a decoder; it is not served")
    if not UNSPECIFIED <= pooling <= RANK:
        raise ModelError(f"its header asks for a pooling of type {pooling}, which is unknown")
    if pooling == RANK:
        return "rerank"
    if pooling in (MEAN, CLS, LAST) or architecture in ENCODERS:
        return "embed"
    return "generate"


def pooling_of(architecture: str, pooling: int) -> int:
    """How the vectors of a model's tokens become one: an encoder that does not say takes the
    mean, as the models do that were made before headers had the key.
    """
    unsaid = pooling in (UNSPECIFIED, NONE)
    return MEAN if unsaid and architecture in ENCODERS else pooling


def splits(architecture: str, pooling: int, *, causal: bool) -> bool:
    """Whether a text may be read in several calls: each token looks back alone, and the last one
    stands for all.
    """
    return causal and architecture not in ENCODERS and pooling in (LAST, RANK)
