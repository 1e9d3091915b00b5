"""A model, and the packages of a machine of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from p2p_mesh.core.manifest import read_manifest
from p2p_mesh.core.package import MANIFEST, Manifest
from p2p_mesh.serve.package.blob import Job
from p2p_mesh.serve.package.build import build
from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests
from p2p_mesh.testing.models import write_model


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    return Digests(tmp_path / "cache" / "digests.json")


@pytest.fixture
def packages(tmp_path: Path, digests: Digests) -> Packages:
    return Packages(tmp_path / "cache" / "packages", digests)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(write_model(tmp_path / "tiny.gguf").path)


@pytest.fixture
def built(model: Path, tmp_path: Path, digests: Digests) -> Path:
    """The folder of the model's package."""
    build(model, tmp_path / "built", projectors=(), digests=digests, job=Job())
    return tmp_path / "built"


@pytest.fixture
def manifest_of() -> Callable[[Path], Manifest]:
    return lambda folder: read_manifest((folder / MANIFEST).read_bytes())
