from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from meshnode_flash_moe.arena import PAGE, Arena
from meshnode_flash_moe.reader import Reader
from meshnode_flash_moe.resident import Experts, Slices
from meshnode_flash_moe.shadow import Region

LAYERS = [[Slices(0, 100, 9000), Slices(0, 80_100, 5000)], [Slices(0, 130_000, 9000)]]
"""Of eight experts, none of which begins with a page."""
PAGES = 64


class Place:
    """A file, and experts that are read from it."""

    def __init__(self, path: Path, room: int) -> None:
        path.write_bytes(os.urandom(PAGES * PAGE))
        self.data = path.read_bytes()
        self._held = mmap.mmap(-1, PAGES * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._held))
        self.arena = Arena([Region(0, 0, PAGES * PAGE, self.start)])
        self.reader = Reader([path], depth=2)
        self.experts = Experts(LAYERS, self.arena, self.reader, experts=8, used=2, room=room)

    def is_right(self, layer: int, expert: int) -> bool:
        return all(
            ctypes.string_at(self.start + one.offset + expert * one.size, one.size)
            == self.data[one.offset + expert * one.size :][: one.size]
            for one in LAYERS[layer]
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "file", room=4 * 14_000 + 4 * 9000)


def rows(*ids: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.array(ids, np.int32)


def test_what_a_row_goes_through_is_read(place: Place) -> None:
    place.experts.need(0, rows((3, 5)))
    assert place.is_right(0, 3)
    assert place.is_right(0, 5)
    assert not place.is_right(0, 4)
    spent = place.experts.spent
    assert (spent.chosen, spent.found, spent.bytes) == (2, 0, 28_000)


def test_what_is_there_is_not_read_again(place: Place) -> None:
    place.experts.need(0, rows((3, 5)))
    read = place.reader.read
    place.experts.need(0, rows((5, 3)))
    assert place.reader.read == read
    assert place.experts.spent.found == 2


def test_rows_of_one_call_share_what_they_go_through(place: Place) -> None:
    place.experts.need(0, rows((3, 5), (3, 6)))
    assert place.experts.spent.chosen == 3


def test_experts_come_and_go_and_are_right_when_they_are_wanted(place: Place) -> None:
    rng = np.random.default_rng(0)
    for number in range(200):
        ids = rng.choice(8, 2, replace=False)
        place.experts.need(number % 2, rows((ids[0], ids[1])))
        assert all(place.is_right(number % 2, int(one)) for one in ids)
        assert place.experts.residency.taken <= place.experts.residency.room
    assert 0 < place.experts.spent.found < place.experts.spent.chosen


def test_a_long_prompt_is_right_too(place: Place) -> None:
    rng = np.random.default_rng(1)
    for number in range(40):
        ids = np.stack([rng.choice(4, 2, replace=False) for _ in range(3)]).astype(np.int32)
        place.experts.need(number % 2, ids)
        assert all(place.is_right(number % 2, int(one)) for one in np.unique(ids))


def test_a_call_of_no_rows_needs_nothing(place: Place) -> None:
    place.experts.need(0, np.empty((0, 2), np.int32))
    assert place.experts.spent.chosen == place.reader.read == 0


def test_what_is_read_ahead_does_not_move_while_it_comes(place: Place) -> None:
    """Each expert that is here is right, whatever was read ahead and left again."""
    rng = np.random.default_rng(2)
    for number in range(120):
        count = int(rng.integers(1, 4))
        ids = np.stack([rng.choice(4, 2, replace=False) for _ in range(count)]).astype(np.int32)
        place.experts.need(number % 2, ids)
    place.reader.wait()
    residency = place.experts.residency
    here = [(a, b) for a in (0, 1) for b in range(8) if residency.is_here(a, b)]
    assert here
    assert all(place.is_right(*one) for one in here)


def test_all_can_be_read_where_there_is_room(tmp_path: Path) -> None:
    place = Place(tmp_path / "file", room=8 * 23_000)
    assert list(place.experts.fill()) == [0.5, 1.0]
    assert all(place.is_right(layer, one) for layer in (0, 1) for one in range(8))
    assert place.experts.residency.taken == place.experts.total == 8 * 23_000


def test_pages_that_experts_share_are_counted(place: Place) -> None:
    assert place.experts.edges == 3 * 8 * PAGE


def test_a_disk_that_fails_is_an_error(place: Place, tmp_path: Path) -> None:
    os.truncate(tmp_path / "file", PAGE)
    with pytest.raises(OSError, match="has become shorter"):
        place.experts.need(0, rows((3, 5)))
