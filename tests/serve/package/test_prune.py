"""The cache is cleaned, of what nobody uses."""

import gc
from pathlib import Path

import pytest

from p2p_mesh.core.package import MANIFEST, METADATA
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.folder import INDEX
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.package.prune import hold, prune, usage
from p2p_mesh.serve.store import Digests


@pytest.fixture
def used(packages: Packages, model: Path) -> str:
    """The manifest of a package with a composed stage, whose node has ended."""
    package = packages.open(model, Job())
    package.stages.mkdir(parents=True)
    (package.stages / "0-1.gguf").write_bytes(bytes(1000))
    packages._opened.clear()
    manifest = package.ref.manifest
    del package
    gc.collect()
    return manifest


def test_stages_and_artifacts_go(packages: Packages, used: str) -> None:
    (found,) = prune(packages.cache, dry_run=True)
    assert (found.manifest, found.name, found.stages_bytes) == (used, "random", 1000)
    assert found.artifacts_bytes == (packages.cache / used / METADATA).stat().st_size
    assert not found.is_used
    assert usage(packages.cache) == found.size_bytes
    assert prune(packages.cache) == (found,)
    assert usage(packages.cache) == 0
    assert prune(packages.cache) == ()


def test_hashes_of_a_file_are_kept(
    packages: Packages, used: str, model: Path, digests: Digests
) -> None:
    prune(packages.cache)
    assert (packages.cache / used / MANIFEST).exists()
    assert (packages.cache / INDEX).exists()
    again = Packages(packages.cache, digests)
    assert again.open(model, Job()).metadata.exists()


def test_package_from_elsewhere_goes_whole(packages: Packages, built: Path) -> None:
    package = packages.open(built, Job())
    folder = package.folder
    (folder / "layers").mkdir()
    (folder / "layers" / "x").write_bytes(bytes(9))
    packages._opened.clear()
    del package
    gc.collect()
    (found,) = prune(packages.cache)
    assert (found.size_bytes, found.name) == (9, "unknown")
    assert not folder.exists()


def test_package_in_use_stays(packages: Packages, used: str, model: Path) -> None:
    package = packages.open(model, Job())
    (found,) = prune(packages.cache)
    assert found.is_used
    assert (package.stages / "0-1.gguf").exists()
    assert package.metadata.exists()


def test_stages_alone_go_too(packages: Packages) -> None:
    folder = packages.cache.parent / "stages" / ("ab" * 32)
    folder.mkdir(parents=True)
    (folder / "0-1.gguf").write_bytes(bytes(7))
    (folder.parent / "not ours").mkdir()
    (found,) = prune(packages.cache)
    assert (found.name, found.size_bytes) == ("unknown", 7)
    assert [one.name for one in folder.parent.iterdir()] == ["not ours"]


def test_cache_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert prune(tmp_path / "none" / "packages") == ()
    assert usage(tmp_path / "none" / "packages") == 0


def test_cache_that_cannot_be_written_holds_no_lock(packages: Packages, built: Path) -> None:
    packages.cache.parent.mkdir(parents=True, exist_ok=True)
    packages.cache.write_text("in the way")
    hold(packages._of_folder(built))


def test_a_file_with_holes_counts_by_what_it_takes(packages: Packages) -> None:
    folder = packages.cache / ("0" * 64) / ".incoming"
    folder.mkdir(parents=True)
    with (folder / "x.part").open("wb") as file:
        file.seek(1 << 30)
        file.write(bytes(4096))
    assert 4096 <= usage(packages.cache) < 1 << 24
