"""What a load takes, and how many layers go to GPUs."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.memory import ENCODINGS, SNAPSHOTS, flashes, gpu_layers, need
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import KvType, ModelFile
from p2p_mesh.serve.backend import Load

GB, MIB = 10**9, 2**20
MODEL = ModelFile(
    id=ModelId("middle"),
    path="/models/middle.gguf",
    size_bytes=4 * GB,
    architecture="llama",
    context_length=32_768,
    kv_bytes_per_token=100_000,
)


# Random models in llama.cpp 0.5.0, f16: architecture, bytes of the file, KV bytes of a token, bytes
# of a state, context, slots, and MiB of the buffers that it allocated together.
MEASURED = [
    ("llama", 337_951_072, 32_768, 0, 8192, 4, 1386),
    ("llama", 337_951_072, 32_768, 0, 2048, 1, 420),
    ("llama", 174_339_808, 23_040, 0, 8192, 4, 907),
    ("llama", 709_041_312, 57_344, 0, 8192, 4, 2504),
    ("llama", 709_041_312, 57_344, 0, 2048, 1, 826),
    ("gemma3", 284_616_960, 32_768, 0, 8192, 4, 1337),
    ("mamba", 179_027_168, 0, 1_368 * 2048, 8192, 4, 200),
    ("lfm2", 447_518_528, 16_384, 32 * 2048, 8192, 4, 979),
    ("lfm2", 447_518_528, 16_384, 32 * 2048, 2048, 1, 492),
    ("bert", 141_261_536, 0, 0, 2048, 1, 184),
    ("bert", 141_261_536, 0, 0, 8192, 1, 431),
]


@pytest.mark.parametrize(
    ("architecture", "size", "kept", "state", "context", "slots", "buffers"), MEASURED
)
def test_the_estimate_bounds_what_was_measured(
    architecture: str, size: int, kept: int, state: int, context: int, slots: int, buffers: int
) -> None:
    model = replace(
        MODEL,
        architecture=architecture,
        size_bytes=size,
        kv_bytes_per_token=kept,
        state_bytes=state,
    )
    real = (buffers + 70) * MIB  # Python and the libraries
    fresh = need(Load(model), context, slots) - (256 * MIB if state else 0)
    assert real <= fresh <= 1.15 * real


def test_the_estimate_bounds_what_was_measured_without_flash_attention() -> None:
    model = replace(MODEL, size_bytes=220_934_400, kv_bytes_per_token=24_576, heads=16)
    assert not flashes(Load(model), 8192, 4)
    real = (1049 + 70) * MIB
    assert real <= need(Load(model), 8192, 4) <= 1.15 * real


def test_flash_attention_is_left_out_only_where_few_share_a_call() -> None:
    load = Load(replace(MODEL, heads=32))
    assert not flashes(load, 8192, 4)
    assert flashes(load, 8192, 5)
    assert not flashes(load, 32_768, 1)
    assert flashes(load, 32_769, 1)  # what it keeps would be too much
    assert flashes(load, 8192, 4, "q8_0")
    assert flashes(dataclasses.replace(load, deterministic=True), 8192, 4)
    assert flashes(Load(MODEL), 8192, 4)  # nobody knows how much it would keep
    assert flashes(Load(replace(load.model, kv_bytes_per_token=0)), 8192, 4)


def test_smaller_numbers_make_a_smaller_cache() -> None:
    kept = [need(Load(MODEL), 8192, 1, kind) - need(Load(MODEL), 0, 1) - 8192 * 2048
            for kind in ("f16", "q8_0", "q4_0")]  # fmt: skip
    assert kept == [819_200_000, 819_200_000 * 34 // 64, 819_200_000 * 18 // 64]


def test_a_context_is_rounded_up() -> None:
    assert need(Load(MODEL), 1, 1) == need(Load(MODEL), 256, 1) < need(Load(MODEL), 257, 1)


def test_a_draft_has_a_cache_of_its_own() -> None:
    draft = replace(MODEL, size_bytes=GB // 4, kv_bytes_per_token=10_000)
    more = need(Load(MODEL, draft=draft), 8192, 2) - need(Load(MODEL), 8192, 2)
    assert more == GB // 4 + GB // 36 + 2 * 8192 * 10_000 + 8192 * 2048


def test_a_projector_is_loaded_too_and_its_encodings_are_kept() -> None:
    projector = replace(MODEL, size_bytes=900_000_000)
    more = need(Load(MODEL, projector=projector), 8192, 2) - need(Load(MODEL), 8192, 2)
    assert more == 1_000_000_000 + 128 * MIB


def test_a_state_has_one_size_and_is_not_quantised() -> None:
    mamba = replace(MODEL, kv_bytes_per_token=0, state_bytes=2_048_000)
    states = [need(Load(mamba), 8192, slots) for slots in (1, 2)]
    assert states[1] - states[0] == 2_048_000
    jamba = replace(MODEL, kv_bytes_per_token=1000, state_bytes=2_048_000)
    cases: list[tuple[int, KvType]] = [(512, "f16"), (8192, "f16"), (8192, "q8_0")]
    hybrid = [need(Load(jamba), context, 2, kind) - need(Load(jamba), context, 1, kind)
              for context, kind in cases]  # fmt: skip
    assert hybrid == [2_560_000, 10_240_000, 2_048_000 + 8_192_000 * 34 // 64]


def test_snapshots_are_for_memory_that_cannot_go_back() -> None:
    plain = need(Load(MODEL), 256, 1)
    assert need(Load(replace(MODEL, state_bytes=1000)), 256, 1) == plain + 1000 + 256 * MIB
    slides = replace(MODEL, window=600, window_bytes_per_token=800)
    assert need(Load(slides), 256, 1) == plain + 256 * MIB
    assert need(Load(slides, deterministic=True), 256, 1) == plain


def test_as_much_is_counted_as_the_engine_keeps() -> None:
    assert (SNAPSHOTS, ENCODINGS) == (256 * MIB, 128 * MIB)


def test_sliding_layers_keep_their_window_unless_answers_must_be_exact() -> None:
    model = replace(MODEL, kv_bytes_per_token=1000, window=600, window_bytes_per_token=800)
    kept = [need(Load(model, deterministic=exact), 8192, 2) for exact in (False, True)]
    assert kept[1] - kept[0] == 2 * 800 * (8192 - 1280) - 256 * MIB
    short = [need(Load(model, deterministic=exact), 512, 2) for exact in (False, True)]
    assert short[0] - short[1] == 256 * MIB


def test_an_encoder_pays_for_the_square_of_its_context() -> None:
    encoder = replace(MODEL, architecture="bert", kv_bytes_per_token=0)
    more = need(Load(encoder), 8192, 1) - need(Load(encoder), 4096, 1)
    assert more == 4 * (8192**2 - 4096**2) + 4096 * 2048


def layers(*free: int, output: int = 100 * MIB) -> int:
    return gpu_layers(
        32, layer_bytes=90 * MIB, kv_bytes_per_layer=10 * MIB, output_bytes=output, free=free
    )


def test_all_layers_and_the_output_where_there_is_room() -> None:
    assert layers(3700 * MIB) == 33
    assert layers(2000 * MIB, 2000 * MIB) == 32
    assert layers(2100 * MIB, 2100 * MIB) == 33


def test_the_output_stays_where_only_layers_fit() -> None:
    assert layers(3600 * MIB) == 32


def test_so_many_layers_as_fit() -> None:
    assert layers(1450 * MIB) == 10


def test_no_gpu_takes_no_layers() -> None:
    assert (layers(), layers(0), layers(450 * MIB)) == (0, 0, 0)


@given(st.lists(st.integers(0, 8000 * MIB), max_size=4), st.integers(0, 2000 * MIB))
def test_layers_take_no_more_than_there_is(free: list[int], more: int) -> None:
    assert layers(*free) in range(34)
    assert (layers(*free) - 1) * 100 * MIB <= sum(free)
    if len(free) == 1:
        assert layers(free[0] + more) >= layers(free[0])
