"""Which models are served with their experts on the disk, and what that takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import meshnode_flash_moe
import pytest
from meshnode_flash_moe.backend import FlashMoe
from meshnode_flash_moe.memory import least
from msgspec.structs import replace

from p2p_mesh.core.package import PackageRef
from p2p_mesh.core.records import ModelFile, Resources
from p2p_mesh.errors import ModelError, Unavailable
from p2p_mesh.serve.backend import Fit, Load, Refusal
from p2p_mesh.testing.mesh import NoMesh
from tests.plugins.flash_moe.mixtures import GB, MODEL
from tests.plugins.flash_moe.test_engine import STAND_IN

DENSE = replace(MODEL, experts=0, expert_bytes=0)


def assess(load: Load, free: int = 32 * GB, *, is_measured: bool = False) -> Fit | Refusal:
    resources = Resources(memory_total=64 * GB, memory_free=free, threads=8)
    if is_measured:
        resources = replace(resources, bandwidth=10.0 * GB, disk=1.0 * GB)
    return FlashMoe().assess(load, resources)


def test_the_plugin_brings_the_backend() -> None:
    (backend,) = meshnode_flash_moe.meshnode_backends()
    assert backend.name == "flash_moe"


def test_a_mixture_that_is_larger_than_the_memory_fits() -> None:
    found = assess(Load(MODEL, memory_limit=10 * GB), is_measured=True)
    assert isinstance(found, Fit)
    assert (found.choice, found.memory_bytes, found.context) == ("flash", 10 * GB, 8192)
    assert found.details["trunk_bytes"] == 2 * GB
    assert found.details["cache_share"] == found.details["hit_rate"]
    assert found.tokens_per_second == pytest.approx(
        1 / (0.3 + found.details["bytes_per_token"] / GB)
    )


def test_what_was_not_measured_is_not_said() -> None:
    found = assess(Load(MODEL, memory_limit=10 * GB))
    assert isinstance(found, Fit)
    assert found.tokens_per_second is None
    assert "disk_bandwidth" not in found.details


def test_whether_it_was_asked_for_changes_nothing() -> None:
    assert assess(Load(MODEL, flash=True)) == assess(Load(MODEL))


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (Load(DENSE), "moe is no mixture of experts."),
        (Load(replace(MODEL, architecture="nomic-bert-moe")), "writes no text"),
        (Load(MODEL, projector=DENSE), "and a projector"),
        (Load(MODEL, gpu_layers=3), "3 layers on GPUs"),
        (Load(MODEL, context=65_536), "trained for a context of 32768"),
    ],
)
def test_what_cannot_be_is_refused_however_much_memory_there_is(load: Load, reason: str) -> None:
    refusal = assess(load, 10**15)
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


def test_a_processor_is_all_that_may_be_asked_for() -> None:
    assert isinstance(assess(Load(MODEL, gpu_layers=0)), Fit)


def test_a_refusal_gives_figures_and_what_would_do() -> None:
    assert assess(Load(MODEL, memory_limit=3 * GB, context=8192)) == Refusal(
        "moe with its experts on the disk needs 2.00 GB for its trunk, 1.27 GB for a context of "
        "8192 tokens and what else it computes with, and 1.00 GB for experts, at least; "
        "3.00 GB may be taken.",
        "No less than 4.27 GB will do.",
    )
    enough = least(Load(MODEL, context=8192), 8192)
    assert isinstance(assess(Load(MODEL, memory_limit=enough, context=8192)), Fit)


async def test_what_is_opened_is_what_was_leased() -> None:
    load = Load(MODEL, memory_limit=10 * GB)
    found = assess(load)
    assert isinstance(found, Fit)
    chosen = Load(MODEL, context=found.context, slots=found.slots, memory_limit=found.memory_bytes)
    async with FlashMoe(worker=STAND_IN).open(chosen, NoMesh()) as engine:
        about = engine.describe()
    memory, experts, _ = about.numerics.split()
    assert (int(memory), int(experts)) == (found.memory_bytes, found.details["cache_bytes"])
    assert (about.context, about.slots) == (found.context, found.slots)


async def test_without_a_limit_it_takes_what_there_is() -> None:
    async with FlashMoe(worker=STAND_IN).open(Load(MODEL), NoMesh()) as engine:
        assert engine.describe().numerics.split()[1] == str(MODEL.expert_bytes)


async def test_too_little_memory_is_said() -> None:
    with pytest.raises(ModelError, match="No less than"):
        async with FlashMoe(worker=STAND_IN).open(Load(MODEL, memory_limit=GB), NoMesh()):
            pass


class _Whole:
    async def whole(self, progress: object) -> Path:
        return Path("bad")


class _WithPackage(NoMesh):
    async def package(self, wanted: ModelFile | PackageRef) -> Any:
        if isinstance(wanted, ModelFile) and wanted.path:
            return _Whole()
        raise Unavailable("no such package")


async def test_a_package_becomes_one_file(tmp_path: Path) -> None:
    load = Load(replace(MODEL, path=str(tmp_path)))
    with pytest.raises(ModelError, match="the file is none"):  # it was the file that was opened
        async with FlashMoe(worker=STAND_IN).open(load, _WithPackage()):
            pass
