"""A town whose nodes hold stages, and a model of nine layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2p_mesh.core.records import ModelFile
from p2p_mesh.testing.models import Shape, write_model
from tests.plugins.skippy.town import Town, packages


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    path = tmp_path_factory.mktemp("models") / "deep.gguf"
    return write_model(path, shape=Shape(layers=9), endless=True)


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Town:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Town(packages(tmp_path))


@pytest.fixture
def pair(town: Town) -> Town:
    town.node("a")
    town.node("b")
    return town
