"""A tiny mixture of experts, whose experts do not lie on whole pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from meshnode_llama_cpp.library import start

from p2p_mesh.testing.models import write_moe


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start()
    path = tmp_path_factory.mktemp("models") / "mixture.gguf"
    write_moe(path, experts=16, used=4, feed=96)
    return path


@pytest.fixture(scope="session")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start()
    path = tmp_path_factory.mktemp("models") / "grouped.gguf"
    write_moe(path, experts=16, used=4, kind="grouped", feed=96)
    return path
