"""The routers of a model, in a file of their own."""

from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.routers import router_recipe
from p2p_mesh.core.gguf import Header
from tests.core.experts.headers import F32, Q8_0, mixture

F16, I32 = 1, 26
ROUTER = 32 * 8 * 4


def of(header: Header) -> Layout:
    found = layout(header)
    assert found is not None
    return found


def names(header: Header, most: int = 1 << 20) -> list[str]:
    found = router_recipe(header, of(header), most)
    return [one.name for one in found.tensors] if found is not None else []


def deep(layers: int) -> Header:
    """Several layers of experts."""
    extra = [
        one
        for layer in range(1, layers)
        for one in (
            (f"blk.{layer}.ffn_gate_inp.weight", (32, 8), F32),
            (f"blk.{layer}.ffn_up_exps.weight", (32, 64, 8), Q8_0),
        )
    ]
    return mixture(*extra, block_count=layers)


def test_routers_are_whole_with_what_is_added_to_them_and_nothing_else() -> None:
    header = mixture(
        ("blk.0.ffn_gate_inp.bias", (8,), F32),
        ("blk.0.exp_probs_b.bias", (8,), F32),
        ("blk.0.ffn_up_exps.scale", (8,), F32),
        ("blk.0.ffn_gate_inp_shexp.weight", (32,), F32),
    )
    found = router_recipe(header, of(header))
    assert found is not None
    assert [(one.name, one.shape, one.pieces) for one in found.tensors] == [
        ("blk.0.ffn_gate_inp.weight", (32, 8), ((0, ROUTER),)),
        ("blk.0.ffn_gate_inp.bias", (8,), ((0, 32),)),
        ("blk.0.exp_probs_b.bias", (8,), ((0, 32),)),
    ]
    (start, size), *_ = found.ranges(header)
    assert (start, size) == (header.tensors[1].offset, ROUTER)


def test_keys_are_left_out_but_for_what_a_reader_needs() -> None:
    header = mixture()
    entries = {"tokenizer.ggml.tokens": (0, 9), "general.alignment": (9, 12)}
    found = router_recipe(Header(header.metadata, header.tensors, entries), of(header))
    assert found is not None
    assert found.metadata == {}
    assert "tokenizer.ggml.tokens" in found.left_out
    assert "moe.expert_count" in found.left_out
    assert not {"general.architecture", "general.alignment"} & {*found.left_out}


def test_of_many_routers_some_layers_are_taken_evenly() -> None:
    found = names(deep(6), most=2 * ROUTER)
    assert found == ["blk.0.ffn_gate_inp.weight", "blk.3.ffn_gate_inp.weight"]
    assert len(names(deep(6), most=6 * ROUTER)) == 6
    assert len(names(deep(6), most=1)) == 1


def test_routers_in_a_form_that_is_not_read_are_left_out() -> None:
    assert names(mixture(("blk.0.exp_probs_b.bias", (8,), I32))) == []
    short = mixture(
        ("blk.1.ffn_gate_inp.weight", (32, 8), F16), ("blk.1.ffn_up_exps.weight", (32, 64, 8), Q8_0)
    )
    assert names(short) == ["blk.0.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.weight"]
    lacking = mixture(("blk.1.ffn_up_exps.weight", (32, 64, 8), Q8_0))
    assert names(lacking) == ["blk.0.ffn_gate_inp.weight"]
