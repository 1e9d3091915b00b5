"""Memory beside the weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.gguf import Header
from p2p_mesh.core.sizing import Kept, kept, kv_bytes_per_token, sliding, state_bytes


def header(architecture: str = "llama", **values: object) -> Header:
    metadata: dict[str, object] = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return Header(metadata, ())  # type: ignore[arg-type]


def test_llama_3_8b() -> None:
    found = header(
        block_count=32, embedding_length=4096, attention__head_count=32, attention__head_count_kv=8
    )
    assert (kv_bytes_per_token(found), state_bytes(found)) == (32 * 8 * (128 + 128) * 2, 0)


def test_head_counts_by_layer() -> None:
    found = header(
        block_count=2, embedding_length=64, attention__head_count=(4, 4),
        attention__head_count_kv=(2, 2), attention__key_length=16, attention__value_length=8,
    )  # fmt: skip
    assert kv_bytes_per_token(found) == 4 * (16 + 8) * 2


def test_a_sliding_window_is_counted_as_if_it_saw_all() -> None:
    found = header(
        "gemma3", block_count=26, embedding_length=1152, attention__head_count=4,
        attention__head_count_kv=1, attention__key_length=256, attention__value_length=256,
        attention__sliding_window=512,
    )  # fmt: skip
    assert kv_bytes_per_token(found) == 26 * 512 * 2
    assert sliding(found) == (512, 22 * 512 * 2)  # each sixth layer sees everything


@pytest.mark.parametrize(("pattern", "layers"), [((True, False, True, True), 3), (2, 2), (1, 0)])
def test_a_header_says_which_layers_slide(pattern: object, layers: int) -> None:
    found = header(
        "plamo3", block_count=4, embedding_length=64, attention__head_count=4,
        attention__sliding_window=128, attention__sliding_window_pattern=pattern,
    )  # fmt: skip
    assert sliding(found) == ((128, layers * 128 * 2) if layers else (0, 0))


def test_layers_that_nobody_named_do_not_slide() -> None:
    found = header(block_count=4, embedding_length=64, attention__sliding_window=4096)
    assert sliding(found) == (0, 0)


@pytest.mark.parametrize("architecture", ["bert", "nomic-bert", "gemma-embedding"])
def test_encoders_keep_nothing(architecture: str) -> None:
    found = header(architecture, block_count=12, embedding_length=768, attention__head_count=12)
    assert (kv_bytes_per_token(found), state_bytes(found)) == (0, 0)


def test_deepseek_keeps_compressed_keys_alone() -> None:
    found = header(
        "deepseek2", block_count=61, embedding_length=7168, attention__head_count=128,
        attention__head_count_kv=1, attention__key_length=576, attention__value_length=512,
        attention__key_length_mla=192,
    )  # fmt: skip
    assert kv_bytes_per_token(found) == 61 * 576 * 2


def test_mamba_keeps_a_state_of_one_size() -> None:
    found = header(
        "mamba", block_count=64, embedding_length=2560, ssm__conv_kernel=4, ssm__inner_size=5120,
        ssm__state_size=16,
    )  # fmt: skip
    assert (kv_bytes_per_token(found), state_bytes(found)) == (0, 64 * (3 + 16) * 5120 * 4)


def test_qwen3_next_attends_in_every_fourth_layer() -> None:
    found = header(
        "qwen3next", block_count=48, embedding_length=2048, attention__head_count=16,
        attention__head_count_kv=2, attention__key_length=256, attention__value_length=256,
        ssm__conv_kernel=4, ssm__inner_size=4096, ssm__state_size=128, ssm__group_count=16,
    )  # fmt: skip
    state = 36 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096) * 4
    assert (kv_bytes_per_token(found), state_bytes(found)) == (12 * 2 * 512 * 2, state)


def test_short_convolutions_stand_between_attention() -> None:
    found = header(
        "lfm2", block_count=4, embedding_length=1024, attention__head_count=16,
        attention__head_count_kv=(0, 0, 8, 0), shortconv__l_cache=3,
    )  # fmt: skip
    assert (kv_bytes_per_token(found), state_bytes(found)) == (8 * 128 * 2, 3 * 2 * 1024 * 4)


def test_rwkv_keeps_a_matrix_for_each_head() -> None:
    found = header("rwkv7", block_count=24, embedding_length=2048, wkv__head_size=64)
    assert (kv_bytes_per_token(found), state_bytes(found)) == (0, 24 * (2 + 64) * 2048 * 4)


def test_kimi_delta_layers_keep_a_matrix_and_three_convolutions() -> None:
    found = header(
        "kimi-linear", block_count=1, embedding_length=2304, attention__head_count=32,
        attention__head_count_kv=(0,), kda__head_dim=128, ssm__conv_kernel=4,
    )  # fmt: skip
    assert (kv_bytes_per_token(found), state_bytes(found)) == (0, (3 * 3 + 128) * 32 * 128 * 4)


def test_falcon_layers_have_both() -> None:
    found = header(
        "falcon-h1", block_count=2, embedding_length=64, attention__head_count=4,
        attention__head_count_kv=2, ssm__conv_kernel=1, ssm__inner_size=128, ssm__state_size=16,
    )  # fmt: skip
    assert (kv_bytes_per_token(found), state_bytes(found)) == (2 * 2 * 32 * 2, 2 * 128 * 16 * 4)


def test_impossible_counts_do_no_harm() -> None:
    assert kv_bytes_per_token(header(block_count=2**63, embedding_length=0)) == 0


KEYS = ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv",
        "full_attention_interval", "wkv.head_size", "shortconv.l_cache", "kda.head_dim",
        "ssm.conv_kernel", "ssm.state_size", "attention.key_length_mla",
        "attention.sliding_window"]  # fmt: skip


@given(
    st.sampled_from(["llama", "mamba", "qwen3next", "falcon-h1", "bert"]),
    st.dictionaries(st.sampled_from(KEYS), st.integers(-(2**63), 2**64 - 1) | st.just("many")),
)
def test_any_header_has_a_size(architecture: str, values: dict[str, object]) -> None:
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in values.items()}  # type: ignore[misc]
    assert 0 <= sliding(Header(metadata, ()))[1] <= 2**200
    assert kv_bytes_per_token(Header(metadata, ())) >= 0
    assert state_bytes(Header(metadata, ())) >= 0


def test_each_layer_keeps_its_own() -> None:
    found = header(
        "gemma3", block_count=7, embedding_length=64, attention__head_count=4,
        attention__head_count_kv=1, attention__sliding_window=512,
    )  # fmt: skip
    assert kept(found)[4:] == (Kept(64, 512), Kept(64, 0), Kept(64, 512))
    hybrid = header(
        "qwen3next", block_count=4, embedding_length=64, attention__head_count=4,
        ssm__state_size=16, ssm__inner_size=64, ssm__conv_kernel=4, ssm__group_count=1,
    )  # fmt: skip
    assert [bool(one.sequence) for one in kept(hybrid)] == [True, True, True, False]
    assert kept(header("bert", block_count=2)) == (Kept(), Kept())


@given(
    st.sampled_from(["llama", "gemma3", "gpt-oss", "qwen3next", "falcon-h1", "mamba", "bert"]),
    st.integers(0, 9),
    st.sampled_from([0, 128]),
)
def test_layers_together_keep_what_the_model_keeps(
    architecture: str, layers: int, window: int
) -> None:
    found = header(
        architecture, block_count=layers, embedding_length=64, attention__head_count=4,
        attention__sliding_window=window, ssm__state_size=16, ssm__inner_size=64,
    )  # fmt: skip
    each = kept(found)
    assert sum(one.token for one in each) == kv_bytes_per_token(found)
    assert sum(one.sequence for one in each) == state_bytes(found)
    assert sum(one.token for one in each if one.window) == sliding(found)[1]
