"""What is counted as memory that is taken."""

import mmap
import os
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("Linux alone counts so", allow_module_level=True)

from p2p_mesh.testing.memory import anonymous, cached, forget, in_status


def test_what_belongs_to_no_file_is_counted() -> None:
    lines = ["VmRSS:\t  900 kB", "RssAnon:\t  300 kB", "RssFile:\t  500 kB", "RssShmem:\t  100 kB"]
    assert in_status(lines) == 400 * 1024


def test_a_process_takes_what_it_writes_to() -> None:
    before = anonymous(os.getpid())
    with mmap.mmap(-1, 8 << 20) as taken:
        taken.write(b"a" * len(taken))
        assert anonymous(os.getpid()) - before > 7 << 20


def test_a_process_that_ended_takes_nothing() -> None:
    assert anonymous(2**22 + 1) == 0


def test_pages_of_a_file_are_counted_until_they_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(100_000))
    assert cached(file) == -(-100_000 // mmap.PAGESIZE) * mmap.PAGESIZE
    forget(file)
    assert cached(file) == 0
