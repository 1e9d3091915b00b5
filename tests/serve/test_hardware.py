"""What this machine has."""

from pathlib import Path

import psutil
import pytest

from p2p_mesh.serve import hardware


def test_machine_is_measured() -> None:
    found = hardware.measure()
    assert 0 < found.memory_free <= found.memory_total <= psutil.virtual_memory().total
    assert found.threads >= 1


def test_users_cap_holds() -> None:
    found = hardware.measure(limit=1_000_000)
    assert (found.memory_total, found.memory_free) == (1_000_000, 1_000_000)


def test_container_sees_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("2000000\n")
    (tmp_path / "none").write_text("max\n")
    paths = (tmp_path / "max", tmp_path / "none", tmp_path / "missing")
    monkeypatch.setattr(hardware, "_CGROUP_LIMITS", paths)
    assert hardware.measure().memory_total == 2_000_000


@pytest.mark.parametrize("readers", [None, 1, 1000])
def test_memory_is_as_fast_as_it_is(readers: int | None) -> None:
    assert 1e8 < hardware.bandwidth(readers) < 1e13
