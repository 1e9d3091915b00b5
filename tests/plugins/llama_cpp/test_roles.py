"""What a model is for, by its header."""

from __future__ import annotations

import pytest
from meshnode_llama_cpp.roles import CLS, ENCODERS, LAST, MEAN, NONE, RANK, pooling_of, role, splits

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.sizing import kv_bytes_per_token, state_bytes
from p2p_mesh.errors import ModelError


@pytest.mark.parametrize(
    ("architecture", "pooling", "expected"),
    [
        ("bert", MEAN, "embed"),
        ("bert", CLS, "embed"),
        ("bert", RANK, "rerank"),  # XLM-RoBERTa and its rerankers call themselves bert
        ("nomic-bert", MEAN, "embed"),
        ("jina-bert-v2", MEAN, "embed"),
        ("jina-bert-v2", RANK, "rerank"),
        ("gemma-embedding", MEAN, "embed"),
        ("qwen3", LAST, "embed"),
        ("qwen3", RANK, "rerank"),
        ("qwen3", NONE, "generate"),
    ],
)
def test_a_pooling_tells(architecture: str, pooling: int, expected: str) -> None:
    assert role(architecture, pooling) == expected


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "mamba"])
def test_a_decoder_that_says_nothing_writes(architecture: str) -> None:
    assert role(architecture) == "generate"


def test_an_encoder_that_says_nothing_gives_the_mean() -> None:
    assert role("modern-bert") == "embed"
    assert (pooling_of("modern-bert", -1), pooling_of("bert", NONE)) == (MEAN, MEAN)
    assert (pooling_of("bert", CLS), pooling_of("qwen3", NONE)) == (CLS, NONE)


@pytest.mark.parametrize("architecture", sorted(ENCODERS - {"llama-embed"}))
def test_what_reads_a_text_as_a_whole_keeps_nothing_of_it(architecture: str) -> None:
    header = Header({"general.architecture": architecture, f"{architecture}.block_count": 4,
                     f"{architecture}.embedding_length": 64}, ())  # fmt: skip
    assert (kv_bytes_per_token(header), state_bytes(header)) == (0, 0)


@pytest.mark.parametrize("architecture", ["t5", "t5encoder"])
def test_half_a_translator_is_refused(architecture: str) -> None:
    with pytest.raises(ModelError, match="reads for a decoder"):
        role(architecture, MEAN)


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ModelError, match="type 7"):
        role("bert", 7)


def test_only_what_looks_back_alone_is_read_in_parts() -> None:
    assert splits("qwen3", LAST, causal=True)
    assert splits("qwen3", RANK, causal=True)
    assert not splits("qwen3", MEAN, causal=True)
    assert not splits("qwen3", LAST, causal=False)
    assert not splits("bert", RANK, causal=True)
