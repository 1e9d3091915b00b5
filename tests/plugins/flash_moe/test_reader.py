from __future__ import annotations

import mmap
import os
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
def memory() -> memoryview:
    return memoryview(mmap.mmap(-1, 8 * PIECE))


@pytest.mark.parametrize("direct", [True, False])
def test_parts_are_where_they_were_wanted(path: Path, memory: memoryview, direct: bool) -> None:
    reader = Reader([path], depth=3, direct=direct)
    reader.post(Part(0, PAGE, memory[: 2 * PIECE]))
    reader.post(Part(0, 0, memory[4 * PIECE : 4 * PIECE + PAGE]))
    reader.wait()
    data = path.read_bytes()
    assert memory[: 2 * PIECE] == data[PAGE : PAGE + 2 * PIECE]
    assert memory[4 * PIECE : 4 * PIECE + PAGE] == data[:PAGE]
    assert reader.read == 2 * PIECE + PAGE
    reader.close()


def test_the_last_page_of_a_file_need_not_be_full(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=2)
    offset = SIZE // PAGE * PAGE
    reader.post(Part(0, offset, memory[:PAGE]))
    reader.wait()
    assert memory[:100] == path.read_bytes()[offset:]
    reader.close()


def test_several_files_are_read_together(path: Path, tmp_path: Path, memory: memoryview) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"x" * PAGE)
    reader = Reader([path, other], depth=2)
    reader.post(Part(0, 0, memory[:PAGE]))
    reader.post(Part(1, 0, memory[PAGE : 2 * PAGE]))
    reader.wait()
    assert memory[: 2 * PAGE] == path.read_bytes()[:PAGE] + b"x" * PAGE
    reader.close()


def test_a_file_that_became_shorter_is_an_error(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=2)
    os.truncate(path, PAGE)
    reader.post(Part(0, 2 * PAGE, memory[:PAGE]))
    with pytest.raises(OSError, match="has become shorter while it was in use"):
        reader.wait()
    reader.wait()  # an error is told once
    reader.close()


def test_a_file_that_was_changed_is_an_error(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=2, patience=0)
    reader.post(Part(0, 0, memory[:PAGE]))
    reader.wait()
    os.utime(path, ns=(1, 1))
    reader.post(Part(0, 0, memory[:PAGE]))
    with pytest.raises(OSError, match="was changed while it was in use"):
        reader.wait()
    with pytest.raises(OSError, match="was changed"):
        reader.close()


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reader([tmp_path / "none"], depth=1)


def test_the_disk_is_measured(path: Path) -> None:
    depth, rate = measure(path, size=PIECE, seconds=0.01)
    assert depth in (4, 8, 16)
    assert rate > 1e6


def test_a_disk_that_fails_says_of_which_file(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=1)
    reader.post(Part(0, 1, memory[:PAGE]))  # no page of the file: direct reads refuse it
    with pytest.raises(OSError, match=r"file cannot be read: .*Invalid argument"):
        reader.wait()
    reader.close()


def test_whatever_goes_wrong_in_a_thread_is_heard(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=1)
    reader.post(Part(3, 0, memory[:PAGE]))
    with pytest.raises(IndexError):
        reader.wait()
    reader.close()


def test_time_is_counted_in_which_the_disk_is_read(path: Path, memory: memoryview) -> None:
    reader = Reader([path], depth=2)
    reader.post(Part(0, 0, memory[: 2 * PIECE]))
    reader.wait()
    first = reader.busy
    assert first > 0
    reader.wait()
    assert reader.busy == first
    reader.close()


def test_a_small_file_is_not_taken_for_a_fast_one(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x" * 100)
    _, rate = measure(tmp_path / "small", size=PIECE, seconds=0.01)
    assert rate < 1e8
