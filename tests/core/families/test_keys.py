"""The keys of a stage's file."""

import math

import pytest

from p2p_mesh.core.families.family import family
from p2p_mesh.core.families.keys import (
    counts,
    first_entry,
    has_sections,
    keys,
    later_entry,
    period,
    refusal,
)  # fmt: skip
from p2p_mesh.core.gguf import Header, Tensor, Value


def model(architecture: str, *tensors: Tensor, **given: Value) -> Header:
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in given.items()}
    return Header({"general.architecture": architecture, **named}, tensors)


def of_stage(header: Header, total: int, blocks: range, start: int) -> dict[str, Value | None]:
    found = keys(header, family(header.architecture), total, blocks, start)
    prefix = f"{header.architecture}."
    assert all(key.startswith(prefix) for key in found)
    return {key.removeprefix(prefix): value for key, value in found.items()}


def test_a_plain_stage_differs_in_the_number_of_layers_alone() -> None:
    assert of_stage(model("llama"), 8, range(2, 5), 2) == {"block_count": 3}


def test_layers_that_predict_ahead_are_left_out() -> None:
    found = of_stage(model("glm4moe", nextn_predict_layers=1), 8, range(4, 8), 4)
    assert (found["block_count"], found["nextn_predict_layers"]) == (4, 0)


def test_lists_with_an_entry_for_each_layer_are_cut_and_no_others() -> None:
    header = model(
        "openelm",
        feed_forward_length=(1, 2, 3, 4),
        attention__head_count_kv=(4, 3, 2, 1, 9),
        rope__dimension_sections=(8, 8, 8, 8),
    )
    found = of_stage(header, 4, range(1, 3), 1)
    assert found["feed_forward_length"] == (2, 3)
    assert found["attention.head_count_kv"] == (3, 2)
    assert "rope.dimension_sections" not in found


def test_the_dense_prefix_is_counted_among_the_blocks() -> None:
    header = model("deepseek32", leading_dense_block_count=3)
    assert of_stage(header, 8, range(2, 6), 2)["leading_dense_block_count"] == 1
    assert of_stage(header, 8, range(4, 6), 4)["leading_dense_block_count"] == 0
    assert "leading_dense_block_count" not in of_stage(
        model("lfm2", leading_dense_block_count=3), 8, range(2, 6), 2
    )


def test_periods_become_lists() -> None:
    header = model("gpt-oss", attention__sliding_window=128)
    found = of_stage(header, 6, range(1, 4), 1)
    assert found["attention.sliding_window_pattern"] == (False, True, False)
    hybrid = of_stage(model("qwen3next"), 8, range(2, 5), 2)
    assert hybrid["attention.recurrent_layers"] == (True, False, True)


def test_a_window_is_dropped_where_no_layer_has_it() -> None:
    header = model("gemma3", attention__sliding_window=512)
    assert of_stage(header, 12, range(5, 6), 5)["attention.sliding_window"] == 0
    assert "attention.sliding_window" not in of_stage(header, 12, range(4, 6), 4)
    kept = model("gpt-oss", attention__sliding_window=512)
    assert "attention.sliding_window" not in of_stage(kept, 12, range(1, 2), 1)


def test_indexers_that_no_key_tells_of_are_told() -> None:
    header = model("glm-dsa", attention__indexer__top_k=9, context_length=1 << 20)
    assert of_stage(header, 8, range(2, 6), 2)["attention.indexer.types"] == (1, 0, 0, 0)


def test_the_first_entry_sizes_all_heads_and_so_is_never_0() -> None:
    header = model("kimi-linear", embedding_length=64, attention__head_count=(4, 0, 4))
    found = of_stage(header, 3, range(1, 3), 1)
    assert found["attention.head_count"] == (4, 4)
    assert found["attention.key_length"] == found["attention.value_length"] == 16
    assert of_stage(header, 3, range(2, 3), 2)["attention.head_count"] == (4,)
    known = model("deci", attention__head_count=(0, 4))
    assert of_stage(known, 2, range(1, 2), 1)["attention.head_count"] == (4,)


def test_what_is_worked_out_from_the_number_of_layers_is_written() -> None:
    found = of_stage(model("minicpm"), 40, range(20), 0)
    assert found["residual_scale"] == pytest.approx(1.4 / math.sqrt(40))
    told = of_stage(model("minicpm", residual_scale=0.5), 40, range(20), 0)
    assert "residual_scale" not in told


def test_a_stage_does_not_scale_again_what_the_first_one_scaled() -> None:
    assert of_stage(model("grok"), 4, range(1, 2), 1)["embedding_scale"] == 1.0
    assert "embedding_scale" not in of_stage(model("grok"), 4, range(2), 0)
    assert "embedding_scale" not in of_stage(model("granite"), 4, range(1, 2), 1)
    scaled = model("granite", embedding_scale=12.0)
    assert of_stage(scaled, 4, range(1, 2), 1)["embedding_scale"] == 1.0


def test_a_light_deepseek2_says_that_its_queries_are_not_compressed() -> None:
    light = of_stage(model("deepseek2", block_count=27), 27, range(9), 0)
    assert light["attention.q_lora_rank"] == 0
    assert light["expert_gating_func"] == 1
    full = of_stage(model("deepseek2", block_count=61, expert_gating_func=2), 61, range(9), 0)
    assert "attention.q_lora_rank" not in full
    assert "expert_gating_func" not in full


def test_glm_4_7_flash_keeps_the_gate_that_its_layers_would_tell() -> None:
    header = model("deepseek2", block_count=47, vocab_size=154_880)
    assert of_stage(header, 47, range(9), 0)["expert_gating_func"] == 2


def test_only_the_first_stage_of_deepseek4_has_layers_that_choose_by_tokens() -> None:
    header = model("deepseek4", hash_layer_count=3)
    assert of_stage(header, 8, range(4), 0)["hash_layer_count"] == 3
    assert of_stage(header, 8, range(4, 8), 4)["hash_layer_count"] == 0


def test_only_the_first_stage_looks_tokens_up() -> None:
    header = model("qwen4exp", ple__layers=(0,))
    assert "ple.layers" not in of_stage(header, 8, range(4), 0)
    assert of_stage(header, 8, range(4, 8), 4)["ple.layers"] is None


def test_images_are_not_waited_for() -> None:
    header = model("granite", deepstack_mapping=(0, 1, -1, -1))
    assert of_stage(header, 4, range(4), 0)["deepstack_mapping"] is None
    assert of_stage(model("qwen3vl", n_deepstack_layers=3), 4, range(4), 0)[
        "n_deepstack_layers"
    ] == 0  # fmt: skip


def test_a_graph_that_aborts_on_rows_is_fed_tokens() -> None:
    plain = model("glm4")
    assert first_entry(plain, family("glm4")) == "tokens"
    assert later_entry(plain, family("glm4")) == "inject"
    several = model("glm4", rope__dimension_sections=(16, 24, 24, 0))
    assert has_sections(several)
    assert first_entry(several, family("glm4")) == later_entry(several, family("glm4")) == "rows"
    none = model("glm4", rope__dimension_sections=(0, 0, 0, 0))
    assert first_entry(none, family("glm4")) == "tokens"


def test_periods_of_experts_and_of_positions_hold_together() -> None:
    assert period(model("llama4", interleave_moe_layer_step=3), family("llama4")) == 12
    assert period(model("llama4"), family("llama4")) == 4
    assert period(model("ernie4_5-moe", interleave_moe_layer_step=2), family("ernie4_5-moe")) == 2
    assert period(model("llama", interleave_moe_layer_step=2), family("llama")) == 1


@pytest.mark.parametrize(
    ("header", "total", "word"),
    [
        (model("baichuan"), 32, "number alone"),
        (model("baichuan"), 40, "number alone"),
        (model("exaone4"), 64, "windows"),
        (model("command-r"), 64, "norms"),
        (model("gemma2", embedding_length=4608, attention__head_count=32,
               attention__key_length=128), 46, "27B"),
        (model("gemma3", embedding_length=5376, attention__head_count=32,
               attention__key_length=128), 62, "27B"),
        (model("smallthinker"), 4, "positions"),
        (model("llama4", attention__sliding_window=0), 8, "last layer"),
        (model("nanbeige", num_loops=2), 8, "loops"),
        (model("kimi-k3", attn_res__block_size=12), 93, "put aside"),
        (model("minicpm3"), 62, "F32"),
        (model("minicpm3", Tensor("blk.0.ffn_down.weight", (8, 8), 8, 0, 0)), 62, "F32"),
        (model("deepseek2"), 47, "weighed"),
    ],
)  # fmt: skip
def test_models_whose_graph_follows_the_number_of_layers_are_refused(
    header: Header, total: int, word: str
) -> None:
    assert word in refusal(header, total)


@pytest.mark.parametrize(
    ("header", "total"),
    [
        (model("baichuan"), 2),
        (model("exaone4"), 30),
        (model("command-r"), 40),
        (model("gemma2", embedding_length=2304, attention__head_count=8,
               attention__key_length=256), 26),
        (model("gemma3", embedding_length=256, attention__head_count=2), 62),
        (model("kimi-k3", attn_res__block_size=12), 12),
        (model("minicpm3", Tensor("blk.0.ffn_down.weight", (8, 8), 0, 0, 0)), 62),
        (model("deepseek2", expert_gating_func=2), 47),
        (model("deepseek2", vocab_size=154_880), 47),
        (model("llama"), 80),
    ],
)  # fmt: skip
def test_their_other_models_are_not(header: Header, total: int) -> None:
    assert not refusal(header, total)


def test_a_file_that_says_it_is_f32_is_believed_where_no_tensors_are_known() -> None:
    header = Header({"general.architecture": "minicpm3", "general.file_type": 0}, ())
    assert not refusal(header, 62)


def test_no_file_has_as_many_blocks_as_another_model() -> None:
    differing = model("gemma3", embedding_length=5376, attention__head_count=32,
                      attention__key_length=128)  # fmt: skip
    assert 62 in counts(differing, family("gemma3"))
    assert 64 in counts(model("command-r"), family("command-r"))
    assert counts(model("deepseek2", block_count=61), family("deepseek2")) == {26, 27}
    assert not counts(model("deepseek2", block_count=27), family("deepseek2"))
    assert not counts(model("deepseek2", block_count=48), family("deepseek2"))
    assert counts(model("baichuan"), family("baichuan")) == {32, 40}
