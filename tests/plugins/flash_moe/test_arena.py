from __future__ import annotations

import ctypes
import mmap

import pytest
from meshnode_flash_moe.arena import PAGE, Arena, inner, outer
from meshnode_flash_moe.shadow import Region


@pytest.fixture
def arena() -> Arena:
    """64 pages of one file, from its third page on."""
    held = mmap.mmap(-1, 64 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    arena = Arena([Region(0, 2 * PAGE, 64 * PAGE, address)])
    arena.held = held  # type: ignore[attr-defined]  # lives as long as what stands in its place
    return arena


def pages(arena: Arena, first: int, count: int) -> tuple[int, int]:
    start = arena.address(0, (2 + first) * PAGE)
    return start, start + count * PAGE


def resident(span: tuple[int, int]) -> int:
    """Pages of a span that are in memory (mincore(2))."""
    count = (span[1] - span[0]) // PAGE
    found = (ctypes.c_ubyte * count)()
    libc = ctypes.CDLL(None)
    assert libc.mincore(ctypes.c_void_p(span[0]), ctypes.c_size_t(span[1] - span[0]), found) == 0
    return sum(one & 1 for one in found)


def fill(span: tuple[int, int], value: int) -> None:
    ctypes.memset(span[0], value, span[1] - span[0])


@pytest.mark.parametrize(
    ("start", "end", "within", "around"),
    [(0, PAGE, (0, PAGE), (0, PAGE)), (1, 3 * PAGE - 1, (PAGE, 2 * PAGE), (0, 3 * PAGE)),
     (5, 9, (PAGE, PAGE), (0, PAGE)), (PAGE, 2 * PAGE, (PAGE, 2 * PAGE), (PAGE, 2 * PAGE))],
)  # fmt: skip
def test_pages_within_and_around(
    start: int, end: int, within: tuple[int, int], around: tuple[int, int]
) -> None:
    assert inner(start, end) == within
    assert outer(start, end) == around


def test_a_byte_of_the_file_has_its_place(arena: Arena) -> None:
    assert arena.address(0, 2 * PAGE + 7) == arena.address(0, 2 * PAGE) + 7
    with pytest.raises(LookupError, match="byte 4096 of file 0 is not mapped"):
        arena.address(0, PAGE)
    with pytest.raises(LookupError):
        arena.address(1, 2 * PAGE)


def test_what_is_not_written_takes_no_memory(arena: Arena) -> None:
    assert resident(pages(arena, 0, 64)) == 0
    fill(pages(arena, 0, 4), 1)
    assert resident(pages(arena, 0, 64)) == 4


def test_pages_move_to_where_they_are_wanted(arena: Arena) -> None:
    fill(pages(arena, 0, 8), 7)
    arena.empty([pages(arena, 0, 8)])
    arena.make(pages(arena, 16, 5))
    arena.make(pages(arena, 32, 3))
    assert resident(pages(arena, 0, 8)) == 0
    assert resident(pages(arena, 16, 5)) == 5
    assert resident(pages(arena, 32, 3)) == 3
    assert resident(pages(arena, 0, 64)) == 8


def test_what_nothing_takes_is_given_back(arena: Arena) -> None:
    fill(pages(arena, 0, 8), 7)
    arena.empty([pages(arena, 0, 8)])
    arena.make(pages(arena, 16, 3))
    arena.trim()
    assert resident(pages(arena, 0, 64)) == 3


def test_what_has_no_spare_pages_takes_new_ones(arena: Arena) -> None:
    fill(pages(arena, 0, 2), 7)
    arena.empty([pages(arena, 0, 2)])
    arena.make(pages(arena, 16, 6))
    fill(pages(arena, 16, 6), 3)
    assert resident(pages(arena, 0, 64)) == 6


def test_a_place_that_was_left_can_be_filled_again(arena: Arena) -> None:
    for _ in range(50):
        fill(pages(arena, 0, 4), 1)
        arena.empty([pages(arena, 0, 4)])
        arena.make(pages(arena, 20, 4))
        arena.empty([pages(arena, 20, 4)])
        arena.make(pages(arena, 0, 4))
    assert resident(pages(arena, 0, 64)) == 4


def test_pages_are_given_back_where_mappings_would_run_out(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode_flash_moe.arena._most_mappings", lambda: 4)
    fill(pages(arena, 0, 4), 1)
    arena.empty([pages(arena, 0, 4)])
    arena.make(pages(arena, 20, 4))
    assert resident(pages(arena, 0, 64)) == 0
    fill(pages(arena, 20, 4), 1)
    assert resident(pages(arena, 0, 64)) == 4


def test_what_stands_there_can_be_seen(arena: Arena) -> None:
    view = arena.view(pages(arena, 3, 1))
    view[:2] = b"ab"
    assert bytes(arena.view(pages(arena, 3, 1))[:3]) == b"ab\0"
    with pytest.raises(LookupError, match="nothing of a file stands at"):
        arena.view((PAGE, 2 * PAGE))


def test_an_empty_span_is_nothing(arena: Arena) -> None:
    arena.empty([(PAGE, PAGE)])
    arena.make((PAGE, PAGE))
    arena.trim()


def test_memory_that_cannot_be_mapped_is_an_error() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        Arena([Region(0, 0, PAGE, 12345)])
