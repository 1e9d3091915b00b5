"""What a token costs where experts come from the disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2p_mesh.core.experts.speed import (
    flash_speed,
    hit_rate,
    missed_bytes,
    routed_bytes,
    token_bytes,
    trunk_bytes,
)
from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile, Resources

GB = 10**9
MODEL = ModelFile(
    id=ModelId("moe"), path="/moe.gguf", size_bytes=18 * GB, architecture="qwen3moe",
    context_length=4096, kv_bytes_per_token=100_000, experts=64, experts_used=4, expert_layers=48,
    expert_bytes=16 * GB,
)  # fmt: skip
DENSE = replace(MODEL, experts=0, experts_used=0, expert_layers=0, expert_bytes=0)
MACHINE = Resources(
    memory_total=9 * GB, memory_free=9 * GB, threads=2, bandwidth=10.0 * GB, disk=1.0 * GB
)


def test_a_token_reads_the_trunk_and_its_own_experts() -> None:
    assert (trunk_bytes(MODEL), routed_bytes(MODEL)) == (2 * GB, 1 * GB)
    assert token_bytes(MODEL) == 3 * GB
    assert token_bytes(DENSE) == 18 * GB


def test_what_is_not_in_memory_comes_from_the_disk() -> None:
    assert hit_rate(MODEL, 8 * GB) == 0.5
    assert missed_bytes(MODEL, 8 * GB) == GB / 2
    assert flash_speed(MODEL, MACHINE, 8 * GB) == pytest.approx(1 / (0.3 + 0.5))


def test_with_all_experts_in_memory_the_disk_does_not_count() -> None:
    unmeasured = replace(MACHINE, disk=0.0)
    assert flash_speed(MODEL, unmeasured, 16 * GB) == pytest.approx(1 / 0.3)
    assert flash_speed(DENSE, unmeasured, 0) == pytest.approx(1 / 1.8)


def test_what_was_not_measured_gives_no_number() -> None:
    assert flash_speed(MODEL, replace(MACHINE, disk=0.0), 8 * GB) is None
    assert flash_speed(MODEL, replace(MACHINE, bandwidth=0.0), 8 * GB) is None


def test_a_model_of_nothing_has_no_speed() -> None:
    assert flash_speed(replace(DENSE, size_bytes=0), MACHINE, 0) is None


def test_a_header_that_lies_makes_no_more_than_the_file() -> None:
    lying = replace(MODEL, experts_used=1000, expert_bytes=20 * GB)
    assert routed_bytes(lying) == 20 * GB
    assert trunk_bytes(lying) == 0


@given(st.integers(0, 20 * GB), st.integers(0, 20 * GB))
def test_more_memory_is_never_slower(one: int, two: int) -> None:
    less, more = sorted((one, two))
    slow, fast = flash_speed(MODEL, MACHINE, less), flash_speed(MODEL, MACHINE, more)
    assert slow is not None
    assert fast is not None
    assert slow <= fast
