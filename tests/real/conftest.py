"""What the tests with real processes share."""

import os
from pathlib import Path

import pytest

from p2p_mesh.settings import ENVIRONMENT
from p2p_mesh.testing.models import Shape, write_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests reaches the nodes, and nothing of theirs stays."""
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT):
            monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nothing sensible, at once."""
    return Path(write_model(tmp_path_factory.mktemp("models") / "tiny.gguf").path)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights whose long answers take seconds."""
    shape = Shape(layers=8, width=256, heads=8, kv_heads=8, feed=1024, context=4096)
    path = tmp_path_factory.mktemp("models") / "slow.gguf"
    return Path(write_model(path, shape=shape, endless=True).path)
