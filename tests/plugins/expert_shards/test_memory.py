"""How many experts there is room for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.memory import SPARE, seat
from msgspec.structs import replace

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile
from p2p_mesh.serve.backend import Fit, Load, Refusal

GB = 10**9
MODEL = ModelFile(
    id=ModelId("m"), path="m.gguf", size_bytes=20 * GB, architecture="qwen3moe",
    context_length=32_768, kv_bytes_per_token=98_304, experts=128, experts_used=8,
    expert_layers=48, expert_bytes=18 * GB,
)  # fmt: skip


def sat(available: int, **wanted: int) -> Fit:
    found = seat(Load(MODEL, **wanted), available)  # type: ignore[arg-type]
    assert isinstance(found, Fit)
    return found


def test_what_trunk_and_context_leave_is_for_experts() -> None:
    found = sat(12 * GB)
    assert (found.choice, found.context) == ("shards", 8192)
    assert found.memory_bytes <= 12 * GB
    assert 6 * GB < found.room < 9 * GB
    assert found.room % (18 * GB // 128) == 0


def test_all_experts_are_the_most() -> None:
    found = sat(100 * GB)
    assert (found.room, found.slots) == (18 * GB, 4)
    assert found.memory_bytes < 30 * GB


def test_further_slots_cost_few_experts() -> None:
    assert [sat(gigabytes * GB).slots for gigabytes in (8, 9, 17)] == [1, 2, 3]
    for gigabytes in range(5, 20):
        found = sat(gigabytes * GB)
        one = sat(gigabytes * GB, slots=1)
        assert one.room - found.room <= SPARE * gigabytes * GB + 18 * GB // 128
    assert sat(8 * GB, slots=4).slots == 4


def test_shorter_context_is_taken_only_where_nobody_asked_for_one() -> None:
    assert sat(6 * GB, context=1024).room > sat(6 * GB, context=8192).room
    tight = seat(Load(MODEL), 3 * GB + 600 * 2**20)
    assert isinstance(tight, Fit)
    assert tight.context < 8192
    assert isinstance(seat(Load(MODEL, context=32_768, slots=2), 4 * GB), Refusal)


def test_what_fits_in_no_way_is_refused_in_words() -> None:
    found = seat(Load(MODEL), 10**6)
    assert isinstance(found, Refusal)
    assert "No expert shard of m fits" in found.reason
    assert "GB" in found.advice


def test_experts_that_nobody_has_measured_are_taken_for_most_of_the_model() -> None:
    found = seat(Load(replace(MODEL, expert_bytes=0)), 100 * GB)
    assert isinstance(found, Fit)
    assert found.room == 18 * GB


@given(st.integers(4 * GB, 40 * GB))
def test_what_was_leased_gives_the_same_room_again(available: int) -> None:
    """So all nodes go by what a node has announced."""
    first = sat(available)
    assert sat(first.memory_bytes, context=first.context, slots=first.slots) == first


@given(st.integers(4 * GB, 30 * GB), st.integers(0, 2 * GB))
def test_more_memory_is_never_less_room(available: int, more: int) -> None:
    assert sat(available + more, slots=1, context=4096).room >= (
        sat(available, slots=1, context=4096).room
    )


@pytest.mark.parametrize("used", [1, 2, 100])
def test_a_shard_has_as_many_experts_as_a_token_uses(used: int) -> None:
    each = 18 * GB // 128
    found = seat(Load(replace(MODEL, experts_used=used), context=512, slots=1), 10 * GB)
    assert isinstance(found, Refusal) if used == 100 else isinstance(found, Fit)
    assert isinstance(found, Refusal) or found.room >= max(used, 2) * each
