from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.backend import LlamaCpp, memory
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile, Resources
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
    need = memory(MODEL, 8192, 4)
    assert assess(32 * GB) == Fit(context=8192, slots=4, memory_bytes=need)
    assert 7.5 * GB < need < 8.5 * GB


def test_slots_go_before_context() -> None:
    fit = assess(11 * GB // 2)
    assert isinstance(fit, Fit)
    assert (fit.context, fit.slots) == (8192, 1)


def test_then_the_context_shrinks() -> None:
    fit = assess(5 * GB)
    assert isinstance(fit, Fit)
    assert (fit.context, fit.slots) == (6400, 1)


def test_a_refusal_gives_figures_and_advice() -> None:
    assert assess(5 * GB, Load(MODEL, context=8192)) == Refusal(
        "middle needs 5.17 GB for a context of 8192 tokens; 5.00 GB are free.",
        "A context of 6400 tokens would fit.",
    )


def test_a_model_that_never_fits() -> None:
    refusal = assess(2 * GB)
    assert isinstance(refusal, Refusal)
    assert refusal.advice == "No less than 4.40 GB will do."


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
