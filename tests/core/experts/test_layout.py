"""Where the experts of a file lie, in the forms that llama.cpp has, and in those it has not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.experts.layout import layout
from p2p_mesh.core.gguf import Header, Value
from p2p_mesh.errors import ModelError
from tests.core.experts.headers import F32, Q8_0, mixture, tensors


def test_expert_is_one_range_of_each_tensor() -> None:
    found = layout(mixture())
    assert found is not None
    assert (found.experts, found.used, found.numbers, found.groups) == (8, 2, (0,), 1)
    one = 32 * 64 // 32 * 34
    gate = 1000 + 32 * 100 * 4 + 32 * 8 * 4
    assert found.slices(0, 3) == tuple(
        (gate + tensor * 8 * one + 3 * one, one) for tensor in range(3)
    )
    assert found.layer(0).size == found.bytes_per_expert == 3 * one
    assert found.expert_bytes == 8 * 3 * one


@given(expert=st.integers(0, 7))
def test_experts_fill_their_tensors(expert: int) -> None:
    found = layout(mixture())
    assert found is not None
    for sliced in found.layer(0).weights:
        offset, size = sliced.of(expert)
        assert offset == sliced.offset + sum(sliced.of(before)[1] for before in range(expert))
        assert size == sliced.size


def test_what_is_by_expert_beside_the_weights_is_named() -> None:
    names = ("ffn_gate_inp.bias", "exp_probs_b.bias", "exp_probs_b_vl.bias", "exp_probs_b",
             "ffn_up_exps.scale", "ffn_down_exps.input_scale")  # fmt: skip
    extra = [(f"blk.0.{name}", (8,), F32) for name in names]
    found = layout(mixture(*extra, ("blk.0.ffn_up_exps.bias", (64, 8), F32)))
    assert found is not None
    small = {one.name.removeprefix("blk.0."): one.size for one in found.layer(0).small}
    assert small == {
        "ffn_gate_inp.weight": 128, "ffn_up_exps.bias": 256, **dict.fromkeys(names, 4),
    }  # fmt: skip


def test_what_all_experts_share_is_no_expert() -> None:
    shared = [(f"blk.0.{name}", shape, F32) for name, shape in (
        ("ffn_up_shexp.weight", (32, 64)), ("ffn_gate_inp_shexp.weight", (32,)),
        ("ffn_norm_exps.weight", (32,)), ("ffn_gate_inp.scale", (32,)),
        ("ffn_gate_tid2eid.weight", (2, 100)),
    )]  # fmt: skip
    assert layout(mixture(*shared)) == layout(mixture())


def test_dense_layers_have_none() -> None:
    found = layout(mixture(("blk.0.ffn_up.weight", (32, 64), Q8_0), layer=1))
    assert found is not None
    assert found.numbers == (1,)
    with pytest.raises(ModelError, match="layer 0 has no experts"):
        found.layer(0)


def test_merged_gates_are_weights() -> None:
    header = mixture(("blk.1.ffn_gate_up_exps.weight", (32, 128, 8), Q8_0))
    found = layout(header)
    assert found is not None
    assert [len(layer.weights) for layer in found.layers] == [3, 1]


def test_use_may_differ_by_layer() -> None:
    extra = ("blk.1.ffn_up_exps.weight", (32, 64, 8), Q8_0)
    found = layout(mixture(extra, expert_used_count=(2, 4)))
    assert found is not None
    assert ([layer.used for layer in found.layers], found.used) == ([2, 4], 4)


def test_groups_are_told() -> None:
    found = layout(mixture(expert_group_count=4, expert_group_used_count=2))
    assert found is not None
    assert (found.groups, found.groups_used) == (4, 2)


def test_model_without_experts_has_no_layout() -> None:
    dense = tensors(("blk.0.ffn_up.weight", (32, 64), Q8_0))
    assert layout(Header({"general.architecture": "llama", "llama.expert_count": 2}, dense)) is None
    assert layout(Header({}, ())) is None


@pytest.mark.parametrize("name", [
    "ffn_gate_chexps.weight", "ffn_up.3.weight", "ffn_up_exps.lora_a", "ffn_other_exps.weight",
])  # fmt: skip
def test_form_that_is_not_known_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(ModelError, match=f"not known here: 'blk.0.{name}'"):
        layout(mixture((f"blk.0.{name}", (32, 64, 8), Q8_0)))


@pytest.mark.parametrize(("keys", "words"), [
    ({"expert_used_count": 0}, "layer 0 uses 0 of 8"),
    ({"expert_used_count": 9}, "layer 0 uses 9 of 8"),
    ({"expert_used_count": (2,)}, "layer 0 uses 0 of 8"),
    ({"expert_group_count": 3, "expert_group_used_count": 1}, "3 groups"),
    ({"expert_group_count": 4, "expert_group_used_count": 5}, "5 are used"),
    ({"expert_group_count": 4}, "0 are used"),
])  # fmt: skip
def test_lies_of_the_header_are_found(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        layout(mixture(**keys))


@pytest.mark.parametrize("experts", [0, 1, 4097, "many"])
def test_number_of_experts_has_bounds(experts: Value) -> None:
    header = mixture()
    header = Header({**header.metadata, "moe.expert_count": experts}, header.tensors)
    with pytest.raises(ModelError, match="there are 2 to 4096"):
        layout(header)


@pytest.mark.parametrize(("tensor", "words"), [
    (("blk.1.ffn_up_exps.weight", (32, 64, 4), Q8_0), "is of 4 experts"),
    (("blk.1.ffn_up_exps.weight", (), F32), "is of 0 experts"),
    (("blk.1.ffn_up_exps.weight", (16, 64, 8), Q8_0), "cannot be cut"),
    (("blk.1.ffn_up_exps.weight", (32, 64, 8), 999), "cannot be cut"),
    (("blk.0.exp_probs_b.bias", (8,), Q8_0), "cannot be cut"),
    (("blk.4096.ffn_up_exps.weight", (32, 64, 8), Q8_0), "a layer 4096"),
])  # fmt: skip
def test_tensor_that_is_not_cut_by_expert_is_refused(
    tensor: tuple[str, tuple[int, ...], int], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        layout(mixture(tensor))
