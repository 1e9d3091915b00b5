"""How memory is shared out between experts and everything else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_flash_moe.memory import available, beside, least, least_experts, margin, share
from msgspec.structs import replace

from p2p_mesh.core.records import Resources
from p2p_mesh.serve.backend import Load
from tests.plugins.flash_moe.mixtures import GB, MODEL

LONGEST = 8192


def test_without_a_limit_some_memory_stays_free() -> None:
    machine = Resources(memory_total=16 * GB, memory_free=8 * GB, threads=1)
    assert available(Load(MODEL), machine) == 7 * GB
    assert available(Load(MODEL, memory_limit=6 * GB), machine) == 6 * GB
    assert available(Load(MODEL, memory_limit=9 * GB), machine) == 7 * GB


def test_experts_cost_what_keeps_their_pages_and_no_more() -> None:
    larger = replace(MODEL, size_bytes=30 * GB, expert_bytes=28 * GB)
    more = beside(Load(larger), 512, 1) - beside(Load(MODEL), 512, 1)
    assert more == margin(28 * GB) - margin(16 * GB) == 12 * GB // 512
    finer = replace(MODEL, experts=128)
    shared = beside(Load(finer), 512, 1) - beside(Load(MODEL), 512, 1)
    assert shared == 64 * MODEL.expert_layers * 3 * 4096


def test_with_room_for_all_experts_there_is_no_more_to_take() -> None:
    room = share(Load(MODEL), 40 * GB, LONGEST)
    assert room is not None
    assert (room.context, room.slots, room.experts) == (8192, 4, 16 * GB)
    assert room.total == beside(Load(MODEL), 8192, 4) + 16 * GB


def test_slots_and_context_leave_experts_their_room() -> None:
    sizes = [
        (room.context, room.slots)
        for memory in (16 * GB, 8 * GB, 5 * GB, 35 * GB // 10)
        if (room := share(Load(MODEL), memory, LONGEST))
    ]
    assert sizes == [(8192, 4), (8192, 1), (4096, 1), (512, 1)]


def test_what_was_asked_for_is_kept() -> None:
    room = share(Load(MODEL, context=8192, slots=2), 51 * GB // 10, LONGEST)
    assert room is not None
    assert (room.context, room.slots) == (8192, 2)
    assert room.experts == 51 * GB // 10 - beside(Load(MODEL), 8192, 2)


def test_the_least_is_a_layer_and_a_token() -> None:
    assert least_experts(MODEL) == GB  # of one token in all layers
    assert least_experts(replace(MODEL, experts_used=1)) == 16 * GB // 48 + 1
    assert least_experts(replace(MODEL, expert_layers=0)) == 16 * GB


@given(st.integers(0, 40 * GB), st.none() | st.integers(16, 32_768), st.none() | st.integers(1, 8))
def test_what_is_shared_out_is_there(memory: int, context: int | None, slots: int | None) -> None:
    load = Load(MODEL, context=context, slots=slots)
    room = share(load, memory, context or LONGEST)
    assert (room is not None) == (memory >= least(load, context or LONGEST))
    if room is not None:
        assert room.total <= memory
        assert least_experts(MODEL) <= room.experts <= MODEL.expert_bytes
        assert context in (None, room.context)
        assert slots in (None, room.slots)


@given(st.integers(3 * GB, 40 * GB), st.none() | st.integers(16, 32_768))
def test_what_was_shared_out_is_shared_out_so_again(memory: int, context: int | None) -> None:
    room = share(Load(MODEL, context=context), memory, context or LONGEST)
    if room is not None:
        chosen = Load(MODEL, context=room.context, slots=room.slots)
        assert share(chosen, room.total, room.context) == room
