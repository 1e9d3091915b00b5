"""The tensors of a stage's file that belong to no layer."""

from p2p_mesh.core.families.family import family
from p2p_mesh.core.families.recipe import VOCABULARY, Renamed
from p2p_mesh.core.families.tensors import Part, left_out, renamed, shared
from p2p_mesh.core.gguf import Header, Value

FIRST = Part(0, 2, 6, has_vocabulary=False, needs_tokens=False)
MIDDLE = Part(2, 4, 6, has_vocabulary=False, needs_tokens=False)
LAST = Part(4, 6, 6, has_vocabulary=True, needs_tokens=False)
WHOLE = Part(0, 6, 6, has_vocabulary=True, needs_tokens=False)


def model(architecture: str, **keys: Value) -> Header:
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in keys.items()}
    named[f"{architecture}.embedding_length"] = 64
    return Header({"general.architecture": architecture, **named}, ())


def made(part: Part, header: Header) -> dict[str, Renamed]:
    found = renamed(part, header, family(header.architecture), range(part.end - part.start))
    return {one.name: one for one in found}


def test_a_stage_without_a_vocabulary_holds_one_row_of_zeros() -> None:
    for part in (FIRST, MIDDLE):
        found = made(part, model("llama"))
        assert found["token_embd.weight"].shape == (64, VOCABULARY)
        assert found["output_norm.weight"].shape == (64,)
        assert "output.weight" not in found  # the graph does without it
        assert "token_embd.weight" not in shared(part, model("llama"))


def test_a_head_that_the_graph_wants_is_made_as_well() -> None:
    found = made(MIDDLE, model("phi2"))
    assert set(found) == {
        "token_embd.weight", "output.weight", "output.bias", "output_norm.weight",
        "output_norm.bias",
    }  # fmt: skip


def test_what_every_layer_shares_is_in_every_stage() -> None:
    for part in (FIRST, MIDDLE):
        assert "rope_freqs.weight" in shared(part, model("llama"))
    assert shared(LAST, model("llama")) == shared(WHOLE, model("llama")) == ("*",)


def test_the_head_of_the_last_stage_takes_the_place_of_its_table() -> None:
    found = made(LAST, model("llama"))
    assert found == {
        "token_embd.weight": Renamed(
            "token_embd.weight", "output.weight", otherwise="token_embd.weight"
        )
    }
    assert left_out(LAST, model("llama"), family("llama"), ()) == ("output.weight",)


def test_a_head_that_cannot_take_it_has_a_table_of_zeros_beside_it() -> None:
    for name in ("qwen2moe", "qwen3tts"):
        found = made(LAST, model(name))
        assert found["token_embd.weight"].shape == (64, VOCABULARY)
        assert found["output.weight"] == Renamed("output.weight", "output.weight")
    assert "output.weight" not in made(MIDDLE, model("qwen3tts"))
    assert not left_out(LAST, model("qwen2moe"), family("qwen2moe"), ())


def test_a_table_that_is_always_the_head_stays() -> None:
    assert not made(LAST, model("gemma2"))
    assert not left_out(LAST, model("gemma2"), family("gemma2"), ())


def test_nothing_is_made_of_a_whole_model() -> None:
    assert not made(WHOLE, model("llama"))
    assert not left_out(WHOLE, model("llama"), family("llama"), ())


def test_positions_are_added_by_the_first_stage_alone() -> None:
    header = model("gpt2", context_length=128)
    assert "position_embd.weight" in shared(FIRST, header)
    assert "position_embd.weight" not in made(FIRST, header)
    assert made(MIDDLE, header)["position_embd.weight"].shape == (64, 128)
    assert made(LAST, header)["position_embd.weight"].shape == (64, 128)
    assert "position_embd.weight" in left_out(LAST, model("mpt"), family("mpt"), ())


def test_the_norm_of_bloom_s_input_is_real_in_the_first_stage_alone() -> None:
    assert "token_embd_norm.weight" in shared(FIRST, model("bloom"))
    assert {"token_embd_norm.weight", "token_embd_norm.bias"} <= set(made(LAST, model("bloom")))


def test_the_norm_of_lfm2_has_the_name_of_another() -> None:
    assert "token_embd_norm.weight" not in shared(FIRST, model("lfm2"))
    assert "token_embd_norm.weight" in made(FIRST, model("lfm2"))


def test_a_family_without_a_norm_has_none() -> None:
    assert set(made(MIDDLE, model("olmo"))) == {"token_embd.weight"}


def test_streams_are_joined_by_a_head_of_zeros() -> None:
    full = made(MIDDLE, model("hy_v4", hyper_connection__count=4))
    assert full["output_hc_fn.weight"].shape == (256, 4)
    low = made(MIDDLE, model("qwen4exp", hyper_connection__count=4, hyper_connection__low_rank=8))
    assert low["output_hc_down.weight"].shape == (256, 8)
    assert low["output_hc_norm.weight"].shape == (64, 4)


def test_scores_of_kimi_k3_are_there_where_it_mixes_blocks() -> None:
    assert "output_res_score.weight" in made(MIDDLE, model("kimi-k3", attn_res__block_size=12))
    assert "output_res_score.weight" not in made(MIDDLE, model("kimi-k3"))


def test_minicpm3_is_scaled_back_to_the_whole_model_s_layers() -> None:
    found = made(MIDDLE, model("minicpm3"))
    assert found["blk.1.ffn_down.weight"].factor == (2 / 6) ** 0.5


def test_a_stage_that_looks_tokens_up_has_the_table() -> None:
    first = Part(0, 2, 6, has_vocabulary=True, needs_tokens=False)
    assert {"token_embd.weight", "per_layer_token_embd.weight"} <= set(
        shared(first, model("qwen4exp"))
    )
    later = Part(2, 4, 6, has_vocabulary=True, needs_tokens=True)
    assert "token_embd.weight" in shared(later, model("talkie"))
    assert set(made(later, model("talkie"))) == {"output.weight"}
    last = Part(4, 6, 6, has_vocabulary=True, needs_tokens=True)
    assert not made(last, model("talkie"))


def test_a_filler_looks_no_tokens_up() -> None:
    header = model("qwen4exp", ple__layers=(0,))
    names = left_out(MIDDLE, header, family("qwen4exp"), (0, 2))
    assert "per_layer_token_embd.weight" in names
    assert "blk.1.ple_conv1d.weight" in names
