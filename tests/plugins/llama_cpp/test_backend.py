from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.backend import LlamaCpp
from meshnode_llama_cpp.memory import need
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import KvType, ModelFile, Resources
from p2p_mesh.serve.backend import Fit, Load, Refusal

GB = 10**9
MODEL = ModelFile(
    id=ModelId("middle"),
    path="/models/middle.gguf",
    size_bytes=4 * GB,
    architecture="llama",
    context_length=32_768,
    kv_bytes_per_token=100_000,
)


def assess(free: int, load: Load | None = None) -> Fit | Refusal:
    resources = Resources(memory_total=64 * GB, memory_free=free, threads=8)
    return LlamaCpp().assess(load or Load(MODEL), resources)


def test_with_room_the_defaults() -> None:
    assert assess(32 * GB) == Fit(context=8192, slots=4, memory_bytes=need(Load(MODEL), 8192, 4))
    assert 7.5 * GB < need(Load(MODEL), 8192, 4) < 8.5 * GB


def test_slots_go_before_context() -> None:
    fit = assess(57 * GB // 10)
    assert isinstance(fit, Fit)
    assert (fit.context, fit.slots) == (8192, 1)


def test_then_the_context_shrinks() -> None:
    fit = assess(5 * GB)
    assert isinstance(fit, Fit)
    assert (fit.context, fit.slots) == (4352, 1)
    assert need(Load(MODEL), 4352 + 256, 1) > 5 * GB


def test_a_refusal_gives_figures_and_all_that_would_help() -> None:
    assert assess(5 * GB, Load(MODEL, context=8192)) == Refusal(
        "middle needs 5.38 GB for a context of 8192 tokens; 5.00 GB are free.",
        "Would fit: a context of 4352 tokens, or the KV type q8_0 (5.00 GB), "
        "or the KV type q4_0 (4.79 GB).",
    )


def test_a_refusal_counts_what_is_already_small() -> None:
    refusal = assess(48 * GB // 10, Load(MODEL, context=8192, kv_type="q8_0"))
    assert isinstance(refusal, Refusal)
    assert refusal.advice == ("Would fit: a context of 4608 tokens, or the KV type q4_0 (4.79 GB).")


def test_fewer_slots_are_advised_where_they_help() -> None:
    refusal = assess(6 * GB, Load(MODEL, context=8192, slots=4, kv_type="q4_0"))
    assert isinstance(assess(6 * GB, Load(MODEL, context=8192, slots=4)), Refusal)
    assert isinstance(refusal, Fit)
    refusal = assess(5 * GB, Load(MODEL, context=8192, slots=4, kv_type="q4_0"))
    assert isinstance(refusal, Refusal)
    assert refusal.advice.endswith("fewer slots (one: 4.79 GB).")


def test_a_model_that_never_fits() -> None:
    refusal = assess(2 * GB)
    assert isinstance(refusal, Refusal)
    assert refusal.advice == "No less than 4.56 GB will do."


def test_an_embedding_model_shrinks_its_context_by_the_square() -> None:
    encoder = replace(MODEL, architecture="bert", kv_bytes_per_token=0, size_bytes=10**8)
    fit = assess(300 * 10**6, Load(encoder))
    assert isinstance(fit, Fit)
    assert (fit.slots, fit.context) == (1, 4352)
    assert need(Load(encoder), 4352 + 256, 1) > 300 * 10**6


def test_the_memory_limit_counts_as_well() -> None:
    assert isinstance(assess(32 * GB, Load(MODEL, memory_limit=2 * GB)), Refusal)


def test_a_small_model_keeps_to_its_own_context() -> None:
    fit = assess(32 * GB, Load(replace(MODEL, context_length=2048)))
    assert isinstance(fit, Fit)
    assert fit.context == 2048


def test_a_context_beyond_training_is_refused() -> None:
    assert assess(32 * GB, Load(MODEL, context=65_536)) == Refusal(
        "middle was trained for a context of 32768 tokens, not 65536.", "Ask for 32768 or fewer."
    )


def test_what_llama_cpp_cannot_count_is_refused() -> None:
    assert isinstance(assess(10**15, Load(MODEL, slots=257)), Refusal)


@given(
    st.integers(0, 64 * GB),
    st.none() | st.integers(1, 32_768),
    st.none() | st.integers(1, 16),
)
def test_a_fit_is_what_was_asked(free: int, context: int | None, slots: int | None) -> None:
    fit = assess(free, Load(MODEL, context=context, slots=slots))
    if isinstance(fit, Fit):
        assert fit.memory_bytes <= free
        assert context in (None, fit.context)
        assert slots in (None, fit.slots)


@given(st.integers(0, 16 * GB), st.sampled_from([None, "f16", "q8_0", "q4_0"]))
def test_what_a_refusal_advises_fits(free: int, kind: KvType | None) -> None:
    refusal = assess(free, Load(MODEL, context=16_384, slots=2, kv_type=kind))
    if isinstance(refusal, Refusal) and (found := re.search(r"context of (\d+) t", refusal.advice)):
        assert isinstance(
            assess(free, Load(MODEL, context=int(found[1]), slots=2, kv_type=kind)), Fit
        )


def test_a_deterministic_engine_has_no_more_slots_than_rows() -> None:
    assert isinstance(assess(900 * GB, Load(MODEL, slots=48, deterministic=True)), Fit)
    refused = assess(900 * GB, Load(MODEL, slots=49, deterministic=True))
    assert isinstance(refused, Refusal)
    assert "48 requests at a time" in refused.reason
