"""Where models can be cut, and the recipes of the stages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.families import CERTIFIED, Needs, study
from p2p_mesh.core.gguf import Header, Tensor, Value
from p2p_mesh.errors import ModelError


def model(architecture: str, layers: int, *tensors: str, **keys: Value) -> Header:
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    named[f"{architecture}.block_count"] = layers
    named.setdefault(f"{architecture}.embedding_length", 64)
    held = tuple(Tensor(name, (64, 64), 0, 0, 16_384) for name in tensors)
    return Header({"general.architecture": architecture, **named}, held)


def test_a_plain_model_is_cut_anywhere() -> None:
    cutting = study(model("llama", 4))
    recipe = cutting.recipe(1, 3)
    assert (recipe.blocks, recipe.entry, recipe.exit_block) == ((1, 2), "rows", 1)
    assert not recipe.has_vocabulary
    assert recipe.stops
    assert cutting.recipe(0, 1).entry == "rows"
    last = cutting.recipe(3, 4)
    assert (last.exit_block, last.has_vocabulary, last.stops) == (None, True, False)


def test_the_whole_model_is_one_stage() -> None:
    recipe = study(model("llama", 4)).recipe(0, 4)
    assert (recipe.entry, recipe.blocks, recipe.exit_block) == ("tokens", (0, 1, 2, 3), None)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 2), (3, 2), (0, 5)])
def test_a_range_that_is_none_is_an_obstacle(start: int, end: int) -> None:
    cutting = study(model("llama", 4))
    assert "there are no layers" in cutting.obstacle(start, end)
    with pytest.raises(ModelError, match="cannot be a stage"):
        cutting.recipe(start, end)


@pytest.mark.parametrize("layers", [0, -3, 513, 1 << 40])
def test_absurd_numbers_of_layers_are_refused(layers: int) -> None:
    with pytest.raises(ModelError, match="layers"):
        study(model("llama", layers))


def test_a_family_is_refused_by_name_and_reason() -> None:
    with pytest.raises(ModelError, match=r"'hrm_text' are not run in stages: its layers are run"):
        study(model("hrm_text", 6))
    with pytest.raises(ModelError, match="'of tomorrow'"):
        study(model("of tomorrow", 6))
    with pytest.raises(ModelError, match="'baichuan'"):
        study(model("baichuan", 32))


def test_layers_that_predict_ahead_are_not_shared_out() -> None:
    assert study(model("glm4moe", 47, nextn_predict_layers=1)).total == 46


def test_a_middle_stage_needs_its_layers_alone() -> None:
    assert study(model("llama", 4)).needs(1, 3) == Needs((1, 2), embeddings=False, output=False)


def test_the_first_stage_needs_the_embeddings_and_the_last_the_head() -> None:
    untied = study(model("llama", 4, "token_embd.weight", "output.weight"))
    assert untied.needs(0, 1) == Needs((0,), embeddings=True, output=False)
    assert untied.needs(3, 4) == Needs((3,), embeddings=False, output=True)


def test_a_last_stage_needs_the_embeddings_where_they_are_the_head() -> None:
    assert study(model("llama", 4, "token_embd.weight")).needs(3, 4).embeddings
    assert study(model("llama", 4)).needs(3, 4).embeddings  # it may be
    assert not study(model("llama", 4), tied=False).needs(3, 4).embeddings
    assert not study(model("llama", 4, "rope_freqs.weight"), tied=False).needs(3, 4).embeddings
    assert study(model("gemma2", 26), tied=False).needs(3, 26).embeddings  # always
    assert not study(model("qwen2moe", 4)).needs(3, 4).embeddings  # never


def test_gemma3_scales_what_its_first_stage_is_fed() -> None:
    cutting = study(model("gemma3", 12))
    assert cutting.recipe(0, 6).scale == 8.0
    assert cutting.recipe(6, 9).scale == 1.0


def test_gemma2_is_fed_behind_its_scale() -> None:
    recipe = study(model("gemma2", 26)).recipe(2, 4)
    assert (recipe.entry, recipe.entry_block, recipe.scale) == ("inject", None, 1.0)


def test_a_layer_with_a_window_is_put_behind_one_that_lacks_it() -> None:
    cutting = study(model("gpt-oss", 6, attention__sliding_window=128))
    recipe = cutting.recipe(1, 2)
    assert (recipe.blocks, recipe.exit_block) == ((1, 2), 0)
    assert recipe.metadata["gpt-oss.block_count"] == 2
    assert cutting.needs(1, 2).blocks == (1, 2)


def test_it_is_put_in_front_of_the_last_stage_and_its_output_replaced() -> None:
    recipe = study(model("gpt-oss", 6, attention__sliding_window=128)).recipe(5, 6)
    assert (recipe.blocks, recipe.entry, recipe.entry_block) == ((4, 5), "inject", 0)
    assert not recipe.needs_tokens


def test_a_kind_that_is_only_in_front_stands_in_front_of_a_middle_stage() -> None:
    pattern = (1, 0, 0, 0)
    header = model(
        "gpt-oss", 4, attention__sliding_window=9, attention__sliding_window_pattern=pattern
    )
    recipe = study(header).recipe(1, 3)
    assert (recipe.blocks, recipe.entry_block, recipe.exit_block) == ((0, 1, 2), 0, 2)


def test_a_hybrid_stage_has_layers_of_both_kinds() -> None:
    recipe = study(model("qwen3next", 8)).recipe(1, 3)
    assert recipe.blocks == (1, 2, 3)
    assert recipe.metadata["qwen3next.attention.recurrent_layers"] == (True, True, False)
    assert study(model("qwen3next", 8)).recipe(7, 8).blocks == (6, 7)


def test_a_shared_indexer_stays_with_its_owner() -> None:
    header = model("glm-dsa", 10, attention__indexer__top_k=2048, context_length=1 << 20)
    cutting = study(header)
    assert "indexer of an earlier layer" in cutting.obstacle(3, 10)
    assert not cutting.obstacle(2, 6)
    assert cutting.recipe(6, 10).blocks == (6, 7, 8, 9)


def test_a_shared_indexer_may_be_cut_off_where_it_selects_everything() -> None:
    header = model(
        "hy_v4", 4, attention__indexer__top_k=256, context_length=256,
        attention__indexer__types=(1, 0, 1, 0),
    )  # fmt: skip
    recipe = study(header).recipe(1, 2)
    assert (recipe.blocks, recipe.entry_block) == ((0, 1), 0)


def test_indexers_without_an_owner_are_an_obstacle() -> None:
    header = model(
        "glm5-next", 3, attention__indexer__top_k=256, context_length=256,
        attention__indexer__types=(0, 0, 1),
    )  # fmt: skip
    assert "no layer before them has an indexer" in study(header).obstacle(1, 2)


def test_positions_by_every_fourth_layer_keep_their_place() -> None:
    recipe = study(model("smollm3", 36)).recipe(6, 9)
    assert (recipe.blocks, recipe.entry_block, recipe.exit_block) == ((4, 5, 6, 7, 8), 1, 4)
    assert study(model("smollm3", 36)).recipe(8, 12).blocks == (8, 9, 10, 11)


def test_a_stage_of_llama4_has_a_layer_without_positions() -> None:
    cutting = study(model("llama4", 8))
    assert cutting.recipe(0, 1).blocks == (0, 1, 2, 3)
    assert cutting.recipe(5, 6).blocks == (4, 5, 6, 7)
    odd = study(model("llama4", 6))
    assert odd.recipe(4, 6).blocks == (0, 1, 2, 3, 4, 5)


def test_no_stage_of_smallthinker_has_four_layers() -> None:
    cutting = study(model("smallthinker", 12, attention__sliding_window=4096))
    assert cutting.recipe(4, 8).blocks == (4, 5, 6, 7, 8)
    assert "4 layers" in cutting.obstacle(8, 12)
    assert not cutting.obstacle(6, 12)


def test_a_kind_that_the_period_does_not_bring_is_an_obstacle() -> None:
    header = model(
        "afmoe", 4, attention__sliding_window=9, attention__sliding_window_pattern=(0, 0, 1, 1)
    )
    cutting = study(header)
    assert cutting.recipe(0, 1).blocks == (0, 1, 2)
    alone = study(
        model("afmoe", 3, attention__sliding_window=9, attention__sliding_window_pattern=(1, 0, 0))
    )
    assert alone.recipe(1, 3).blocks == (0, 1, 2)


def test_a_filler_that_would_be_of_the_wrong_place_is_an_obstacle() -> None:
    pattern = (1, 0, 0, 0, 0, 0)
    header = model(
        "afmoe", 6, attention__sliding_window=9, attention__sliding_window_pattern=pattern
    )
    assert study(header).recipe(4, 6).blocks == (0, 1, 2, 3, 4, 5)
    far = (1, *(0,) * 11)
    header = model("afmoe", 12, attention__sliding_window=9, attention__sliding_window_pattern=far)
    assert "of a kind" in study(header).obstacle(8, 12)


def test_no_stage_is_taken_for_another_model() -> None:
    cutting = study(model("deepseek2", 61, expert_gating_func=2))
    assert "26 layers" in cutting.obstacle(0, 26)
    assert not cutting.obstacle(0, 25)


def test_layers_that_choose_by_tokens_stay_together() -> None:
    ratios = (0, 0, 4, 128, 4, 128)
    cutting = study(model("deepseek4", 6, hash_layer_count=3, attention__compress_ratios=ratios))
    assert "by the tokens" in cutting.obstacle(2, 6)
    assert cutting.recipe(0, 3).entry == "tokens"
    assert cutting.recipe(5, 6).blocks == (4, 5)
    lonely = study(
        model("deepseek4", 4, hash_layer_count=3, attention__compress_ratios=(0, 0, 4, 128))
    )
    assert "kind 4" in lonely.obstacle(3, 4)


def test_tokens_are_looked_up_in_the_first_stage_alone() -> None:
    cutting = study(model("qwen4exp", 8, ple__layers=(4,)))
    assert "look tokens up" in cutting.obstacle(4, 8)
    assert not cutting.obstacle(5, 8)
    assert cutting.recipe(0, 5).has_vocabulary


def test_heads_are_sized_by_the_first_block() -> None:
    begins_without = study(model("plamo2", 4, attention__head_count=(0, 4, 0, 4),
                                 attention__head_count_kv=(0, 4, 0, 4)))  # fmt: skip
    assert "without attention" in begins_without.obstacle(1, 3)
    assert not begins_without.obstacle(2, 4)
    begins_with = study(model("deci", 3, attention__head_count=(4, 0, 4)))
    assert "that has attention" in begins_with.obstacle(1, 2)
    assert not begins_with.obstacle(2, 3)


def test_the_first_layer_stands_in_front_where_all_need_what_it_was_fed() -> None:
    recipe = study(model("talkie", 4)).recipe(2, 3)
    assert (recipe.blocks, recipe.entry, recipe.entry_block) == ((0, 2), "inject", 0)
    assert recipe.needs_tokens
    assert recipe.has_vocabulary
    needs = study(model("talkie", 4)).needs(2, 3)
    assert needs == Needs((0, 2), embeddings=True, output=False)
    assert study(model("kimi-k3", 4)).recipe(2, 3).blocks == (2,)
    banked = study(model("kimi-k3", 4, attn_res__block_size=12))
    assert banked.recipe(2, 3).blocks == (0, 2)


VALUES = st.one_of(
    st.integers(-2, 9), st.lists(st.integers(0, 4), max_size=13).map(tuple), st.booleans()
)
KEYS = (
    "attention__sliding_window", "attention__sliding_window_pattern", "attention__head_count",
    "attention__head_count_kv", "attention__recurrent_layers", "attention__indexer__top_k",
    "attention__indexer__types", "attention__compress_ratios", "leading_dense_block_count",
    "interleave_moe_layer_step", "full_attention_interval", "hash_layer_count", "ple__layers",
    "nextn_predict_layers", "embedding_length", "context_length", "feed_forward_length",
    "expert_gating_func", "n_deepstack_layers", "hyper_connection__count",
)  # fmt: skip


@given(
    st.sampled_from(sorted(CERTIFIED)),
    st.integers(1, 12),
    st.dictionaries(st.sampled_from(KEYS), VALUES),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_whatever_a_file_says_a_stage_is_refused_or_whole(
    name: str, layers: int, said: dict[str, Value], cut: tuple[int, int]
) -> None:
    try:
        cutting = study(model(name, layers, **said))
    except ModelError:
        return
    if cutting.obstacle(*cut):
        return
    recipe = cutting.recipe(*cut)
    own = range(*cut)
    at = 0 if recipe.entry_block is None else recipe.entry_block + 1
    assert recipe.blocks[at : at + len(own)] == tuple(own)
    assert recipe.exit_block == (None if recipe.is_last else at + len(own) - 1)
    assert recipe.is_last or recipe.stops
    assert not recipe.is_last or recipe.blocks[-1] == cutting.total - 1
    assert recipe.metadata[f"{name}.block_count"] == len(recipe.blocks)
    assert cutting.wanted <= {cutting.kinds[block] for block in recipe.blocks}
    assert set(recipe.blocks) == set(cutting.needs(*cut).blocks)
    listed = recipe.metadata.get(f"{name}.attention.sliding_window_pattern", recipe.blocks)
    assert isinstance(listed, tuple)
    assert len(listed) == len(recipe.blocks)
