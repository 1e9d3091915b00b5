from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from meshnode_flash_moe.arena import PAGE
from meshnode_flash_moe.reader import PIECE, Part, Reader, measure

SIZE = 3 * PIECE + 5 * PAGE + 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, 8 * PIECE) as memory:
        yield memory


def address(memory: mmap.mmap) -> int:
    held = ctypes.c_char.from_buffer(memory)
    found = ctypes.addressof(held)
    del held
    return found


@pytest.mark.parametrize("direct", [True, False])
def test_parts_are_where_they_were_wanted(path: Path, memory: mmap.mmap, direct: bool) -> None:
    reader, start = Reader([path], depth=3, direct=direct), address(memory)
    reader.post(Part(0, PAGE, 2 * PIECE, start))
    reader.post(Part(0, 0, PAGE, start + 4 * PIECE))
    reader.wait()
    data = path.read_bytes()
    assert memory[: 2 * PIECE] == data[PAGE : PAGE + 2 * PIECE]
    assert memory[4 * PIECE : 4 * PIECE + PAGE] == data[:PAGE]
    assert reader.read == 2 * PIECE + PAGE
    reader.close()


def test_the_last_page_of_a_file_need_not_be_full(path: Path, memory: mmap.mmap) -> None:
    reader = Reader([path], depth=2)
    offset = SIZE // PAGE * PAGE
    reader.post(Part(0, offset, PAGE, address(memory)))
    reader.wait()
    assert memory[:100] == path.read_bytes()[offset:]
    reader.close()


def test_several_files_are_read_together(path: Path, tmp_path: Path, memory: mmap.mmap) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * PAGE)
    reader, start = Reader([path, other], depth=2), address(memory)
    reader.post(Part(0, 0, PAGE, start))
    reader.post(Part(1, 0, PAGE, start + PAGE))
    reader.wait()
    assert memory[: 2 * PAGE] == path.read_bytes()[:PAGE] + b"x" * PAGE
    reader.close()


def test_a_file_that_became_shorter_is_an_error(path: Path, memory: mmap.mmap) -> None:
    reader = Reader([path], depth=2)
    os.truncate(path, PAGE)
    reader.post(Part(0, 2 * PAGE, PAGE, address(memory)))
    with pytest.raises(OSError, match="has become shorter while it was in use"):
        reader.wait()
    reader.wait()  # an error is told once
    reader.close()


def test_a_file_that_was_changed_is_an_error(path: Path, memory: mmap.mmap) -> None:
    reader = Reader([path], depth=2, patience=0)
    reader.post(Part(0, 0, PAGE, address(memory)))
    reader.wait()
    os.utime(path, ns=(1, 1))
    reader.post(Part(0, 0, PAGE, address(memory)))
    with pytest.raises(OSError, match="was changed while it was in use"):
        reader.wait()
    with pytest.raises(OSError, match="was changed"):
        reader.close()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader([tmp_path / "none"], depth=1)


def test_the_disk_is_measured(path: Path) -> None:
    depth, _, rate = measure(path, size=PIECE, seconds=0.01)
    assert depth in (4, 8, 16)
    assert rate > 1e6
