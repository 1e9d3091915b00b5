"""A mixture of experts, a cache of its own, and what runs commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from meshnode_expert_shards.rankings import Ranked, keep

from p2p_mesh.cli.main import execute
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking
from p2p_mesh.core.names import Digest
from p2p_mesh.serve import store
from p2p_mesh.testing.models import write_moe

EXPERTS, USED, TOKENS = 64, 4, 1000
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "meshnode"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models") / "moe.gguf"
    write_moe(path, experts=EXPERTS, used=USED)
    return path


@pytest.fixture
def model(written: Path, tmp_path: Path) -> Path:
    """Of which nothing is known yet."""
    path = tmp_path / "moe.gguf"
    path.symlink_to(written)
    return path


@pytest.fixture
def ranked(model: Path, tmp_path: Path) -> Ranking:
    """What is known of it: each expert is used twice as much as the next but seven."""
    weights = [2.0 ** (-one / 8) for one in range(EXPERTS)]
    counts = tuple(TOKENS for _ in weights)
    masses = tuple(TOKENS * one / sum(weights) for one in weights)
    layers = tuple(LayerRanking(layer=one, counts=counts, masses=masses) for one in (0, 1))
    digest = store.Digests(tmp_path / "digests.json").file(model)
    ranking = Ranking(
        model=Digest(digest), tokens=TOKENS, experts=EXPERTS, used=USED, layers=layers
    )
    keep(Ranked.of(ranking))
    return ranking


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `meshnode experts`; what it says, or where it fails, why."""

    def call(*words: str | Path, code: int = 0) -> str:
        assert execute(["experts", *map(str, words)]) == code
        found = capsys.readouterr()
        return found.err if code and not found.out else found.out

    return call
