"""Memory beside the weights."""

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.sizing import kv_bytes_per_token


def header(**values: object) -> Header:
    metadata = {"general.architecture": "llama"}
    metadata |= {f"llama.{key.replace('__', '.')}": value for key, value in values.items()}  # type: ignore[misc]
    return Header(metadata, ())


def test_llama_3_8b() -> None:
    found = header(
        block_count=32, embedding_length=4096, attention__head_count=32, attention__head_count_kv=8
    )
    assert kv_bytes_per_token(found) == 32 * 8 * (128 + 128) * 2


def test_head_counts_by_layer() -> None:
    found = header(
        block_count=2, embedding_length=64, attention__head_count=(4, 4),
        attention__head_count_kv=(2, 0), attention__key_length=16, attention__value_length=8,
    )  # fmt: skip
    assert kv_bytes_per_token(found) == 2 * (16 + 8) * 2


def test_impossible_counts_do_no_harm() -> None:
    assert kv_bytes_per_token(header(block_count=2**63, embedding_length=0)) == 0
