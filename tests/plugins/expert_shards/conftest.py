"""What tests of shards share: a cache of their own, a mixture of experts, a ranking of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from meshnode_expert_shards import tap
from meshnode_llama_cpp.nodes import watcher
from msgspec.structs import replace

from p2p_mesh.core.experts.layout import Layout, layout
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking
from p2p_mesh.core.names import Digest
from p2p_mesh.core.records import ModelFile
from p2p_mesh.serve.package.source import read_source
from p2p_mesh.testing.models import write_moe
from tests.plugins.expert_shards.demo import DEMO, Cut, cut
from tests.plugins.expert_shards.street import Street

EXPERTS = 48


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "meshnode"


@pytest.fixture
def street(tmp_path: Path, cache: Path) -> Street:
    return Street(tmp_path)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """48 experts, of which a node has 16 (too few for two), 32 or all."""
    model = write_moe(tmp_path_factory.mktemp("moe") / "moe.gguf", experts=EXPERTS, endless=True)
    digest = Digest(hashlib.sha256(Path(model.path).read_bytes()).hexdigest())
    return replace(model, digest=digest)


@pytest.fixture(scope="session")
def experts(moe: ModelFile) -> Layout:
    found = layout(read_source(Path(moe.path)).header)
    assert found is not None
    return found


@pytest.fixture
def ranking(moe: ModelFile, experts: Layout) -> Ranking:
    """By which a third of the experts take most of the routing."""
    assert moe.digest is not None
    return ranked(moe.digest, experts)


def ranked(model: Digest, experts: Layout, tokens: int = 1000) -> Ranking:
    counts = tuple(900 if expert % 3 == 0 else 100 for expert in range(EXPERTS))
    layers = tuple(
        LayerRanking(layer=number, counts=counts, masses=tuple(map(float, counts)))
        for number in experts.numbers
    )
    return Ranking(model=model, tokens=tokens, experts=EXPERTS, used=experts.used, layers=layers)


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """The first and the second half of the experts of every layer."""
    return cut(DEMO, tmp_path_factory.mktemp("halves"), range(16), range(16, 32))


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many questions llama.cpp has asked of the taps that were made since."""
    asked = 0

    def counting(*given: Any) -> Any:
        watch, narrow = watcher(*given)

        def counted(tensor: int, asks: bool, data: object) -> bool:
            nonlocal asked
            asked += asks
            return watch(tensor, asks, data)

        return counted, narrow

    monkeypatch.setattr(tap, "watcher", counting)
    return lambda: asked
