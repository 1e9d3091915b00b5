"""What the file of a shard is made of, and of which models there are none."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.experts.known import EXPERTS, MODEL
from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.shard import Cut, ShardRecipe, obstacle, shard_recipe
from p2p_mesh.core.gguf import Header, Value
from p2p_mesh.core.names import Digest
from p2p_mesh.errors import ModelError
from tests.core.experts.headers import F32, Q8_0, mixture

WHOLE = Digest("0" * 64)
EXPERT = 32 * 64 // 32 * 34


def of(header: Header) -> Layout:
    found = layout(header)
    assert found is not None
    return found


def recipe(header: Header, *experts: tuple[int, ...], mass: float = 0.5) -> ShardRecipe:
    return shard_recipe(header, of(header), experts, model=WHOLE, mass=mass)


def named(found: ShardRecipe, name: str) -> Cut:
    return next(one for one in found.tensors if one.name == name)


def family(architecture: str, header: Header, **keys: Value) -> Header:
    """The same of another family."""
    told = {f"{architecture}.{key.partition('.')[2]}": value
            for key, value in header.metadata.items()}  # fmt: skip
    added = {f"{architecture}.{key}": value for key, value in keys.items()}
    return Header(told | {"general.architecture": architecture} | added, header.tensors)


def test_experts_are_cut_out_and_the_trunk_is_whole() -> None:
    found = recipe(mixture(("blk.0.exp_probs_b.bias", (8,), F32)), (1, 2, 5))
    assert named(found, "blk.0.ffn_up_exps.weight") == Cut(
        "blk.0.ffn_up_exps.weight", (32, 64, 3), Q8_0, 3 * EXPERT,
        ((EXPERT, 2 * EXPERT), (5 * EXPERT, EXPERT)),
    )  # fmt: skip
    assert named(found, "blk.0.ffn_gate_inp.weight").shape == (32, 3)
    assert named(found, "blk.0.exp_probs_b.bias").pieces == ((4, 8), (20, 4))
    assert named(found, "token_embd.weight").pieces == ((0, 12_800),)
    assert found.size == 12_800 + 3 * (128 + 4 + 3 * EXPERT)


def test_header_says_how_many_there_are_and_which() -> None:
    found = recipe(mixture(expert_group_count=2, expert_group_used_count=1), (0, 1, 4, 5))
    assert found.metadata["moe.expert_count"] == 4
    assert found.metadata[MODEL] == WHOLE
    assert found.metadata[EXPERTS] == (0b110011,)
    assert "moe.expert_used_count" not in found.metadata


def test_keys_of_a_model_in_several_files_are_left_out() -> None:
    header = mixture()
    header = Header({**header.metadata, "split.count": 2}, header.tensors)
    assert recipe(header, (0, 1)).left_out == ("split.count",)


def test_ranges_are_what_is_needed_of_a_file_and_no_more() -> None:
    header = mixture()
    found = recipe(header, (0, 7))
    ranges = found.ranges(header)
    assert sum(size for _, size in ranges) == found.size
    first = 12_800 + 2 * 32 * 4 - 128  # the table, and the first row of the router
    assert ranges[0] == (1000, first)
    assert all(start + size < after for (start, size), (after, _) in pairwise(ranges))
    assert recipe(header, tuple(range(8))).ranges(header) == ((1000, found_size(header)),)


def found_size(header: Header) -> int:
    return sum(one.size for one in header.tensors)


def test_ranges_of_one_file_of_several_are_those_of_its_tensors() -> None:
    header = mixture()
    parts = [Header(header.metadata, header.tensors[:2]), Header({}, header.tensors[2:])]
    found = recipe(header, (3, 4))
    sizes = [sum(size for _, size in found.ranges(part)) for part in parts]
    assert sizes == [12_800 + 2 * 128, 6 * EXPERT]
    assert found.ranges(Header({}, ())) == ()


@given(st.sets(st.integers(0, 7), min_size=2))
def test_pieces_are_the_experts_in_their_order(chosen: set[int]) -> None:
    header = mixture()
    data = random.Random(0).randbytes(1000 + found_size(header))
    found = recipe(header, tuple(sorted(chosen)))
    for cut, tensor in zip(found.tensors, header.tensors, strict=True):
        source = data[tensor.offset : tensor.offset + tensor.size]
        got = b"".join(source[start : start + size] for start, size in cut.pieces)
        assert len(got) == cut.size
        if tensor.name.endswith("exps.weight"):
            assert got == b"".join(source[one * EXPERT : (one + 1) * EXPERT]
                                   for one in sorted(chosen))  # fmt: skip


@pytest.mark.parametrize(("experts", "words"), [
    ((), "equally many experts of each of 1 layers"),
    (((0, 1), (0, 1)), "equally many experts of each of 1 layers"),
    (((0,),), "cannot have 1 of 8"),
    ((tuple(range(9)),), "cannot have 9 of 8"),
    (((1, 0),), "rise, from 0 to 7"),
    (((1, 1),), "rise, from 0 to 7"),
    (((-1, 1),), "rise, from 0 to 7"),
    (((1, 8),), "rise, from 0 to 7"),
])  # fmt: skip
def test_experts_that_make_no_model_are_refused(
    experts: tuple[tuple[int, ...], ...], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        recipe(mixture(), *experts)


def test_layers_have_equally_many() -> None:
    header = mixture(("blk.1.ffn_up_exps.weight", (32, 64, 8), Q8_0))
    with pytest.raises(ModelError, match="equally many experts of each of 2 layers"):
        recipe(header, (0, 1), (0, 1, 2))


def test_groups_have_equally_many() -> None:
    header = mixture(expert_group_count=2, expert_group_used_count=1)
    with pytest.raises(ModelError, match="equally many experts of each of 2 groups"):
        recipe(header, (0, 1, 2, 5))
    with pytest.raises(ModelError, match="cannot have 3 of 8"):
        recipe(header, (0, 1, 5))


def test_mixture_of_experts_has_no_obstacle() -> None:
    assert obstacle(mixture()) == obstacle(mixture(), 4) == ""


def test_model_without_experts_has_none_to_shard() -> None:
    header = Header({"general.architecture": "llama"}, ())
    assert obstacle(header) == "it is no mixture of experts, but a 'llama'"


def test_shard_is_not_sharded_again() -> None:
    header = mixture()
    header = Header({**header.metadata, MODEL: WHOLE}, header.tensors)
    assert "a shard" in obstacle(header).replace("an expert", "a")
    with pytest.raises(ModelError, match="made of the whole model"):
        recipe(header, (0, 1))


def test_experts_in_chunks_are_refused_by_name() -> None:
    header = family("grovemoe", mixture(("blk.0.ffn_up_chexps.weight", (32, 64, 4), Q8_0)))
    assert obstacle(header) == (
        "models of the family 'grovemoe' are not run in expert shards: its experts are in a form "
        "that is not known here: 'blk.0.ffn_up_chexps.weight'"
    )


def test_tables_that_name_experts_are_refused() -> None:
    tables = mixture(("blk.0.ffn_gate_tid2eid.weight", (2, 100), 26))
    for header in (family("deepseek4", tables), family("deepseek4", mixture(), hash_layer_count=3)):
        assert "by tables of tokens" in obstacle(header)
    assert obstacle(family("deepseek4", mixture(), hash_layer_count=0)) == ""


def test_family_whose_experts_nobody_computes_is_refused() -> None:
    header = family("refact", mixture())
    assert "'refact' are not run in expert shards: llama.cpp computes none" in obstacle(header)


@pytest.mark.parametrize(("experts", "keep", "is_made"), [
    (16, None, True), (16, 8, True), (128, None, False), (128, 64, False), (128, 128, True),
    (256, None, True), (256, 128, False),
])  # fmt: skip
def test_llama4_keeps_its_graph_or_is_refused(
    experts: int, keep: int | None, is_made: bool
) -> None:
    header = family("llama4", mixture(experts=experts))
    assert (obstacle(header, keep) == "") == is_made
    assert obstacle(mixture(experts=experts), keep) == ""
