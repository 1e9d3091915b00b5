"""What kind each layer is, from a model's metadata."""

from p2p_mesh.core.families.family import family
from p2p_mesh.core.families.layers import (
    Kind,
    indexers,
    kinds,
    recurrent,
    selects_all,
    wanted,
    windows,
)
from p2p_mesh.core.gguf import Header, Value


def model(architecture: str, **keys: Value) -> Header:
    """`_` stands for a dot in the names of keys that begin with one of a group."""
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return Header({"general.architecture": architecture, **named}, ())


def window_of(header: Header, total: int) -> tuple[bool, ...] | None:
    return windows(header, family(header.architecture), total)


def test_every_sixth_layer_of_gemma3_sees_all() -> None:
    header = model("gemma3", attention__sliding_window=1024)
    assert window_of(header, 8) == (True, True, True, True, True, False, True, True)


def test_a_family_may_begin_with_a_layer_that_sees_all() -> None:
    header = model("cohere2moe", attention__sliding_window=64)
    assert window_of(header, 5) == (False, True, True, True, False)


def test_a_period_in_the_file_goes_before_the_family_s_own() -> None:
    header = model("gemma3", attention__sliding_window=64, attention__sliding_window_pattern=2)
    assert window_of(header, 4) == (True, False, True, False)


def test_a_list_in_the_file_goes_before_every_period() -> None:
    pattern = (0, 1, 1)
    header = model(
        "gpt-oss", attention__sliding_window=64, attention__sliding_window_pattern=pattern
    )
    assert window_of(header, 3) == (False, True, True)


def test_a_list_that_is_too_short_is_not_believed() -> None:
    header = model("gpt-oss", attention__sliding_window=64, attention__sliding_window_pattern=(0,))
    assert window_of(header, 2) == (True, False)


def test_no_width_is_no_window_but_where_the_family_implies_one() -> None:
    assert window_of(model("gemma3"), 4) is None
    assert window_of(model("gemma3", attention__sliding_window=0), 4) is None
    assert window_of(model("gemma2"), 2) == (True, False)
    assert window_of(model("llama", attention__sliding_window=64), 2) is None


def test_a_period_of_0_makes_every_layer_a_window() -> None:
    header = model("gpt-oss", attention__sliding_window=9, attention__sliding_window_pattern=0)
    assert window_of(header, 2) == (True, True)
    first = model("cohere2moe", attention__sliding_window=9, attention__sliding_window_pattern=0)
    assert window_of(first, 2) == (True, True)


def test_recurrent_layers_come_from_a_list_an_interval_or_heads() -> None:
    listed = model("jamba", attention__recurrent_layers=(1, 0, 1))
    assert recurrent(listed, family("jamba"), 3) == (True, False, True)
    assert recurrent(model("qwen3next"), family("qwen3next"), 5) == (True,) * 3 + (False, True)
    every_second = model("qwen35", full_attention_interval=2)
    assert recurrent(every_second, family("qwen35"), 3) == (True, False, True)
    headless = model("lfm2", attention__head_count_kv=(0, 8, 0))
    assert recurrent(headless, family("lfm2"), 3) == (True, False, True)
    assert recurrent(model("llama"), family("llama"), 3) is None
    short = model("lfm2", attention__head_count_kv=(0,))
    assert recurrent(short, family("lfm2"), 3) is None  # a list for other layers says nothing
    assert recurrent(model("deci", attention__head_count_kv=(0, 8)), family("deci"), 2) is None


def test_indexers_are_shared_where_the_file_says_so() -> None:
    told = model("hy_v4", attention__indexer__top_k=64, attention__indexer__types=(1, 0, 0, 1))
    assert indexers(told, 4) == (True, False, False, True)
    assert indexers(model("hy_v4", attention__indexer__types=(1, 0)), 2) is None  # no top_k
    assert indexers(model("glm5-next", attention__indexer__top_k=64), 2) is None
    assert indexers(model("llama", attention__indexer__top_k=64), 2) is None


def test_glm_5_2_shares_indexers_without_saying_so() -> None:
    old = model("glm-dsa", attention__indexer__top_k=64, context_length=202_752)
    new = model("glm-dsa", attention__indexer__top_k=64, context_length=1_048_576)
    assert indexers(old, 8) is None
    assert indexers(new, 8) == (True, True, True, False, False, False, True, False)


def test_an_indexer_that_selects_as_many_as_there_can_be_selects_all() -> None:
    assert selects_all(model("hy_v4", attention__indexer__top_k=256, context_length=256))
    assert not selects_all(model("hy_v4", attention__indexer__top_k=255, context_length=256))


def test_layers_of_nemotron_h_are_of_three_kinds() -> None:
    header = model(
        "nemotron_h", attention__head_count_kv=(2, 0, 0), feed_forward_length=(0, 0, 384)
    )
    found = kinds(header, family("nemotron_h"), 3)
    assert found == ("whole", "recurrent", "feed_forward")
    assert wanted(header, family("nemotron_h"), found) == {"whole", "recurrent"}


def test_layers_of_deepseek4_are_told_by_their_ratio() -> None:
    header = model("deepseek4", attention__compress_ratios=(0, 4, 128))
    found = kinds(header, family("deepseek4"), 4)
    assert found == (0, 4, 128, 0)
    assert wanted(header, family("deepseek4"), found) == {4}


def test_layers_of_minimax_m3_have_an_index_behind_the_dense_ones() -> None:
    header = model("minimax-m3", leading_dense_block_count=1)
    found = kinds(header, family("minimax-m3"), 3)
    assert found == ("whole", "sparse", "sparse")
    assert wanted(header, family("minimax-m3"), found) == {"sparse"}


def test_layers_that_share_an_indexer_are_a_kind_of_their_own() -> None:
    header = model("hy_v4", attention__indexer__top_k=8, attention__indexer__types=(1, 0))
    assert kinds(header, family("hy_v4"), 2) == ("whole", "shared")


def test_a_window_is_wanted_where_it_cannot_be_dropped() -> None:
    found: tuple[Kind, ...] = ("window", "whole")
    assert wanted(model("gpt-oss"), family("gpt-oss"), found) == {"window"}
    assert wanted(model("gemma3"), family("gemma3"), found) == frozenset()
    assert wanted(model("dots3note"), family("dots3note"), found) == {"window", "whole"}
