"""What this machine has."""

from pathlib import Path

import psutil
import pytest

from p2p_mesh.core.names import ModelId
from p2p_mesh.core.records import ModelFile
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


def mixture(path: Path, size: int, experts: int = 8) -> ModelFile:
    return ModelFile(
        id=ModelId(path.stem), path=str(path), size_bytes=size, architecture="qwen3moe",
        context_length=1, kv_bytes_per_token=1, experts=experts,
    )  # fmt: skip


def test_disk_is_measured_where_experts_may_be_read_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "DISK_MEASURING", 0.02)
    path = tmp_path / "moe.gguf"
    path.write_bytes(bytes(4 * hardware.BLOCK))
    found = hardware.disk([mixture(path, 4 * hardware.BLOCK)])
    assert found == 0.0 or 1e5 < found < 1e13  # 0: a file system without direct reads
    assert hardware.disk([mixture(tmp_path, 4 * hardware.BLOCK)]) == 0.0 or found > 0.0


def test_disk_is_measured_in_the_largest_file_of_a_split_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "DISK_MEASURING", 0.02)
    first, second = (tmp_path / f"moe-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"1")
    second.write_bytes(bytes(4 * hardware.BLOCK))
    split = hardware.disk([mixture(first, 4 * hardware.BLOCK)])
    alone = hardware.disk([mixture(second, 4 * hardware.BLOCK)])
    assert (split > 0.0) == (alone > 0.0)  # 0: a file system without direct reads


def test_disk_is_left_alone_where_no_model_has_experts(tmp_path: Path) -> None:
    assert hardware.disk([]) == 0.0
    assert hardware.disk([mixture(tmp_path / "dense.gguf", 1, experts=0)]) == 0.0


def test_disk_that_cannot_be_measured_is_not(tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    small.write_bytes(b"1")
    (tmp_path / "empty").mkdir()
    for path in (small, tmp_path / "missing.gguf", tmp_path / "empty"):
        assert hardware.disk([mixture(path, 1)]) == 0.0
