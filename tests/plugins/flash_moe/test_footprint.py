from __future__ import annotations

import pytest
from meshnode_flash_moe.footprint import Footprint, measure, read


def test_a_status_is_read() -> None:
    status = "Name:\tpython\nVmData:\t  2048 kB\nRssAnon:\t    1024 kB\n"
    assert read(status) == Footprint(resident=1 << 20, allocated=2 << 20)


@pytest.mark.parametrize("status", ["", "VmData:\t1 kB\n", "VmData:\t1 kB\nRssAnon:\tmany kB\n"])
def test_a_status_that_tells_nothing_is_an_error(status: str) -> None:
    with pytest.raises(OSError, match="does not say how much memory"):
        read(status)


def test_memory_that_is_touched_is_resident() -> None:
    before = measure()
    held = bytearray(b"x") * (32 << 20)
    assert measure().resident - before.resident > 24 << 20
    assert measure().allocated - before.allocated > 24 << 20
    del held
