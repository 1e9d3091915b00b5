"""What the bench of experts from the disk decides for itself: models, traces, limits, figures."""

import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

import flash  # type: ignore[import-not-found]
import limits  # type: ignore[import-not-found]
import moe  # type: ignore[import-not-found]
import traces  # type: ignore[import-not-found]
import written  # type: ignore[import-not-found]

SHAPE = moe.Shape(layers=2, width=64, heads=4, kv_heads=2, feed=32, experts=10, used=2,
                  vocabulary=512, context=128)  # fmt: skip
TERMS = written.Terms(warm=2, warm_seconds=10.0, count=4, seconds=20.0)
TRACE = [[[0, 1]], [[0, 2]], [[3, 0]], [[1, 0]]]
"""Four tokens of a model with one layer."""


def answer(times: list[float], **more: Any) -> Any:
    return written.Answer(tokens=list(range(len(times))), times=times, **more)


def cold(times: list[float], **more: Any) -> Any:
    given = answer(times, cache=2.0 * SHAPE.expert_bytes)
    return flash.Cold(given, given.rate(TERMS), held=900, **more)


def test_an_expert_that_was_not_chosen_for_longest_leaves() -> None:
    assert traces.misses(TRACE, 2) == 6  # 3 and 2 were not given up, but 0
    assert traces.misses(TRACE, 3) == 5  # 1 was given up for 3
    assert traces.misses(TRACE, 4) == 4


def test_what_was_brought_in_before_does_not_count() -> None:
    assert traces.misses(TRACE, 4, 2) == 1
    assert traces.choices(TRACE, 2) == 4


def test_experts_of_two_layers_are_not_the_same() -> None:
    assert traces.misses([[[0], [0]], [[0], [0]]], 2) == 2


@given(st.lists(st.lists(st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True),
                         min_size=3, max_size=3), max_size=12), st.integers(0, 30))  # fmt: skip
def test_more_room_never_reads_more(trace: list[list[list[int]]], capacity: int) -> None:
    missed = traces.misses(trace, capacity)
    assert traces.misses(trace, capacity + 1) <= missed <= traces.choices(trace)


def test_concentration_is_of_each_layer() -> None:
    trace = [[[0], [1]], [[0], [2]], [[1], [2]], [[0], [2]]]
    assert traces.concentration(trace, 1) == 6 / 8


def test_a_bound_is_reading_and_computing() -> None:
    assert traces.bound(10, read=2e9, bandwidth=1e9, compute=0.3) == 2.0


def test_a_model_has_the_same_bytes_again(tmp_path: Path) -> None:
    first, again = tmp_path / "first.gguf", tmp_path / "again.gguf"
    for path in (first, again):
        moe.write(path, "random", SHAPE)
    assert first.read_bytes() == again.read_bytes()


def tensors(path: Path) -> dict[str, Any]:
    return {one.name: one for one in gguf.GGUFReader(path).tensors}


def test_weights_keep_the_size_of_what_they_multiply(tmp_path: Path) -> None:
    moe.write(tmp_path / "random.gguf", "random", SHAPE)
    found = tensors(tmp_path / "random.gguf")["blk.1.ffn_up_exps.weight"]
    assert found.data.nbytes == SHAPE.experts * SHAPE.expert_bytes // 3
    weights = gguf.quants.dequantize(found.data, found.tensor_type)
    assert weights.std() == pytest.approx(SHAPE.width**-0.5, rel=0.02)


def test_a_fifth_of_the_experts_are_favoured_in_each_layer(tmp_path: Path) -> None:
    moe.write(tmp_path / "skewed.gguf", "skewed", SHAPE)
    found = tensors(tmp_path / "skewed.gguf")
    for layer in range(SHAPE.layers):
        router = found[f"blk.{layer}.ffn_gate_inp.weight"].data
        assert (router[:, 0] > 0).sum() == 2
        assert (router[:, 0] == 0).sum() == 8


def test_no_layer_changes_the_place_that_all_tokens_share(tmp_path: Path) -> None:
    moe.write(tmp_path / "skewed.gguf", "skewed", SHAPE)
    found = tensors(tmp_path / "skewed.gguf")
    assert (found["token_embd.weight"].data[:, 0] == moe.SHARED).all()
    for name in ("attn_output", "ffn_down_exps"):
        one = found[f"blk.1.{name}.weight"]
        assert not gguf.quants.dequantize(one.data, one.tensor_type)[..., 0, :].any()


def test_an_answer_counts_once_it_is_warm() -> None:
    times = [0.0, 1.0, 2.0, 4.0, 6.0, 8.0]
    assert written.begin(times, TERMS) == 2
    assert written.rate(times, TERMS) == 4 / 7
    assert written.is_enough(times, TERMS)
    assert not written.is_enough(times[:5], TERMS)


def test_a_slow_answer_is_warm_after_a_time_and_ends_after_one() -> None:
    slow = written.Terms(warm=5, warm_seconds=10.0, count=100, seconds=20.0)
    times = [0.0, 11.0, 20.0, 31.0]
    assert written.begin(times, slow) == 2
    assert written.rate(times, slow) == 2 / 20
    assert written.is_enough(times, slow)
    assert not written.is_enough(times[:3], slow)


def test_an_answer_without_enough_tokens_has_no_rate() -> None:
    with pytest.raises(RuntimeError, match="2 tokens are too few"):
        written.rate([0.0, 1.0], TERMS)


def test_hits_are_those_of_the_tokens_that_count() -> None:
    given = answer([0.0, 1.0, 2.0, 3.0], hits=[0.0, 0.0, 0.5, 0.7])
    assert given.hit_rate(TERMS) == pytest.approx(0.6)


def test_answers_are_alike_as_far_as_they_go() -> None:
    assert flash.are_alike([0, 1, 2], [answer([0.0] * 2), answer([0.0] * 3)])
    assert not flash.are_alike([0, 1, 3], [answer([0.0] * 3)])


def test_figures_are_medians_over_the_rounds() -> None:
    prompt = [[[0, 1]]] * (len(written.PROMPT) - 1)
    times = [0.0, 1.0, 2.0, 3.0]  # 2 of them count: rows 2 and 3 of the trace
    usual = [answer([0.0, 1.0, 1.5, 2.0])]
    found = flash.Found(SHAPE, TERMS, prompt + TRACE, plain=usual, flash=usual)
    one = {"flash": cold(times, bandwidth=SHAPE.expert_bytes), "mmap": cold([0.0, 1.0, 11.0])}
    figures = {one.name: one for one in found.half([one])}
    assert figures["flash_over_mmap_half"].value == pytest.approx(10)
    assert figures["lru_hit_rate_half"].value == 0.25
    assert figures["bound_rate_half"].value == pytest.approx(2 / (3 + 2 * 0.5))
    assert figures["flash_over_bound_half"].holds


def test_memory_is_held_in_all_runs() -> None:
    assert not flash._held([(90, 100), (101, 100)]).holds
    assert flash._held([(90, 100), (100, 100)]).value == 1.0


def test_a_group_of_memory_is_found() -> None:
    text = "9:name=systemd:/\n4:cpu,memory:/some/where\n0::/\n"
    assert limits.home_of(text) == "some/where"


def test_without_a_group_of_memory_there_are_no_limits() -> None:
    with pytest.raises(RuntimeError, match="no memory group"):
        limits.home_of("0::/user.slice\n")
