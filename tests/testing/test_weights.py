"""The weights of models that tests write."""

from __future__ import annotations

import numpy as np
import pytest

from p2p_mesh.testing.weights import (
    SMALL,
    Kind,
    Mixture,
    Shape,
    bert,
    decoder,
    mixture,
    yes_or_no,
)


@pytest.mark.parametrize("kind", ["llama", "sliding", "recurrent", "hybrid"])
def test_weights_are_float32_and_drawn_from_the_seed(kind: Kind) -> None:
    first, again, other = (dict(decoder(SMALL, kind, seed)) for seed in (1, 1, 2))
    assert {data.dtype for data in first.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["output.weight"], other["output.weight"])


def test_layers_are_as_many_as_the_shape_says() -> None:
    names = {name.split(".")[1] for name, _ in decoder(Shape(layers=3), "llama", 0)
             if name.startswith("blk.")}  # fmt: skip
    assert names == {"0", "1", "2"}


def test_attention_and_convolution_take_turns() -> None:
    names = [name for name, _ in decoder(SMALL, "hybrid", 0)]
    assert "blk.0.shortconv.conv.weight" in names
    assert "blk.1.attn_q.weight" in names
    assert "blk.0.attn_q.weight" not in names


def test_heads_share_keys() -> None:
    weights = dict(decoder(SMALL, "llama", 0))
    assert (SMALL.head, SMALL.kv_width) == (16, 32)
    assert weights["blk.0.attn_k.weight"].shape == (32, 64)


def test_matrices_keep_the_size_of_what_they_multiply() -> None:
    weights = dict(decoder(SMALL, "llama", 0))
    assert float(weights["blk.0.ffn_up.weight"].std()) == pytest.approx(1 / 8, rel=0.05)
    assert float(weights["token_embd.weight"].std()) == pytest.approx(1, rel=0.05)


def test_who_ranks_has_a_head() -> None:
    assert dict(bert(SMALL, 0, ranks=True))["cls.output.weight"].shape == (1, 64)
    assert "cls.weight" not in dict(bert(SMALL, 0, ranks=False))
    assert dict(yes_or_no(SMALL, 0))["cls.output.weight"].shape == (2, 64)


def test_grouped_experts_have_what_those_of_deepseek_have() -> None:
    found = dict(mixture(SMALL, Mixture(router="grouped"), 0))
    assert found["blk.1.exp_probs_b.bias"].shape == (16,)
    assert found["blk.1.ffn_down_exps.weight"].shape == (16, 64, 32)
    assert found["blk.1.ffn_up_shexp.weight"].shape == (32, 64)
    assert "blk.0.ffn_up.weight" in found
    assert "blk.0.ffn_up_exps.weight" not in found


def test_a_skewed_router_likes_the_first_experts_whatever_it_reads() -> None:
    even, skewed = (dict(mixture(SMALL, Mixture(skew=skew), 0)) for skew in (0.0, 4.0))
    router, words = skewed["blk.0.ffn_gate_inp.weight"], skewed["token_embd.weight"]
    likings = (words @ router.T).mean(axis=0)
    assert likings[:4].min() > likings[-4:].max()
    likings = (even["token_embd.weight"] @ even["blk.0.ffn_gate_inp.weight"].T).mean(axis=0)
    assert np.abs(likings).max() < 1
