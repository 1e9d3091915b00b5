"""What a stage takes, and the law."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2p_mesh.core.costs import (
    HOP,
    PROCESS,
    Layer,
    Parts,
    StageModel,
    is_tied,
    law,
    rooms,
    stage_model,
)
from p2p_mesh.core.gguf import Header
from p2p_mesh.core.names import Digest
from p2p_mesh.core.package import Artifact, Manifest
from p2p_mesh.errors import ModelError

GB = 10**9


def layers(count: int, size: int = GB) -> tuple[Layer, ...]:
    return (Layer(size),) * count


def test_stage_without_vocabulary_holds_neither_embeddings_nor_head() -> None:
    model = StageModel("m", "", layers(3, 0), first_bytes=5 * GB, last_bytes=3 * GB)
    middle = model.need(1, 2)
    assert model.need(0, 1) - middle == pytest.approx(5 * GB * 10 / 9)
    assert model.need(2, 3) - middle == pytest.approx(3 * GB * 10 / 9)
    assert middle < 2 * PROCESS


def test_head_that_is_the_embeddings_is_held_and_read_by_the_last_stage_too() -> None:
    model = StageModel("m", "", layers(2, 0), first_bytes=GB, is_tied=True)
    assert model.need(1, 2) == model.need(0, 1) == model.need(0, 2)
    assert (model.read(0, 1), model.read(1, 2)) == (0, GB)


def test_cache_grows_with_context_and_slots_and_a_window_bounds_it() -> None:
    def cache(layer: Layer, context: int, slots: int) -> int:
        one = StageModel("m", "", (layer,), context=context, slots=slots)
        return one.need(0, 1) - StageModel("m", "", layers(1, 0), context=context).need(0, 1)

    assert cache(Layer(0, kv=10), 1000, 2) == 1024 * 10 * 2
    assert cache(Layer(0, kv=10, window=200), 4096, 2) == 768 * 10 * 2
    assert cache(Layer(0, kv=10, window=2000), 512, 1) == 512 * 10
    assert cache(Layer(0, state=7), 4096, 3) == 21


def test_fillers_take_memory_and_no_time() -> None:
    def needs(start: int, end: int) -> Parts:
        return Parts(sorted({0, *range(start, end)}), False, False)

    model = StageModel("m", "", layers(4), needs=needs)
    assert model.need(1, 2) > model.need(0, 1)
    assert model.read(1, 2) == model.read(0, 1)


def test_token_reads_what_it_needs_of_a_layer() -> None:
    assert StageModel("m", "", (Layer(100, read=10), Layer(100)), last_bytes=5).read(0, 2) == 115


@given(st.lists(st.integers(0, GB), min_size=2, max_size=8), st.data())
def test_parts_take_no_less_than_the_whole(sizes: list[int], data: st.DataObject) -> None:
    model = StageModel("m", "", tuple(map(Layer, sizes)), first_bytes=3, last_bytes=4)
    cut = data.draw(st.integers(1, len(sizes) - 1))
    parts = model.need(0, cut) + model.need(cut, len(sizes))
    assert parts >= model.need(0, len(sizes)) - 1  # the ninth of each is rounded
    assert model.read(0, cut) + model.read(cut, len(sizes)) == model.read(0, len(sizes))


def test_law_is_one_round_trip_for_two_stages_and_one_way_for_each_further() -> None:
    assert law(0.05, []) == 0.05
    assert law(0.05, [0.01, 0.01]) == pytest.approx(0.05 + 0.02 + 2 * HOP)
    assert law(0.05, [0.01] * 3) - law(0.05, [0.01] * 2) == pytest.approx(0.01 + HOP)
    assert law(0, [0, 0]) < 0.0015


def test_what_is_asked_for_is_kept_and_the_rest_shrinks() -> None:
    assert list(rooms(None, None, 2048)) == [
        (2048, 4), (2048, 3), (2048, 2), (2048, 1), (1024, 1), (512, 1),
    ]  # fmt: skip
    assert next(rooms(None, None, 0)) == next(rooms(None, None, 10**6)) == (8192, 4)
    assert list(rooms(100, 2, 4096)) == [(100, 2)]
    assert list(rooms(None, 2, 1024)) == [(1024, 2), (512, 2)]
    assert list(rooms(4096, None, 0))[-1] == (4096, 1)


class Rules:
    """A family that cuts anywhere but after its first layer."""

    def __init__(self, total: int, *, is_tied: bool = False) -> None:
        self.total = total
        self.is_tied = is_tied

    def obstacle(self, start: int, end: int) -> str:
        return "not after the first layer" if 1 in (start, end) else ""

    def needs(self, start: int, end: int) -> Parts:
        is_last = end == self.total
        return Parts(range(start, end), not start or (is_last and self.is_tied), is_last)


def artifact(size: int) -> Artifact:
    return Artifact(
        path=f"{size}.gguf", tensor_count=1, tensor_bytes=size, artifact_bytes=size,
        sha256=Digest("0" * 64),
    )  # fmt: skip


def manifest(count: int) -> Manifest:
    return Manifest(
        model_id="m", layer_count=count, activation_width=64, metadata=artifact(1),
        embeddings=artifact(20), output=artifact(30),
        layers=tuple(artifact(1000 + place) for place in range(count)),
    )  # fmt: skip


HEADER = Header(
    {
        "general.architecture": "moe", "moe.block_count": 4, "moe.embedding_length": 64,
        "moe.attention.head_count": 1, "moe.expert_count": 10, "moe.expert_used_count": 1,
        "moe.leading_dense_block_count": 1,
    },
    (),
)  # fmt: skip


def test_package_becomes_a_model_of_a_plan() -> None:
    rules = Rules(3)
    found = stage_model(
        manifest(4), HEADER, rules, sha256="ab", context=8, slots=2, kv_type="q8_0", wire="f16"
    )
    assert (found.id, found.manifest, found.total, found.row_bytes) == ("m", "ab", 3, 128)
    assert (found.first_bytes, found.last_bytes, found.common_bytes) == (20, 30, 1)
    assert found.layers[0] == Layer(1000, kv=2 * 64 * 2 * 17 // 32)
    assert found.layers[1].read == pytest.approx(1001 * 0.19, abs=1)  # a tenth of its experts
    assert (found.obstacle(0, 1), found.obstacle(0, 2)) == ("not after the first layer", "")
    assert found.need(2, 3) > found.need(1, 2)
    assert not found.is_tied


@pytest.mark.parametrize(("layers", "expected"), [(4, True), (2, False)])
def test_last_stage_that_takes_the_embeddings_is_seen(layers: int, expected: bool) -> None:
    rules = Rules(layers, is_tied=True)  # of two layers, which cannot be cut, nothing is asked
    found = stage_model(manifest(4), HEADER, rules, sha256="", context=8, slots=1)
    assert found.is_tied == expected


@pytest.mark.parametrize("total", [0, 5])
def test_package_that_has_not_its_layers_is_refused(total: int) -> None:
    with pytest.raises(ModelError, match="build it again"):
        stage_model(manifest(4), HEADER, Rules(total), sha256="", context=8, slots=1)


def test_package_whose_output_is_a_norm_is_tied() -> None:
    whole = manifest(1)
    assert not is_tied(whole)
    assert is_tied(replace(whole, embeddings=artifact(10_000)))
