"""The bench of artifacts: the file that it makes, and what it says of its pairs."""

import sys
from pathlib import Path

import pytest

from p2p_mesh.serve.package.packages import Packages
from p2p_mesh.serve.store import Digests

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import artifacts  # type: ignore[import-not-found]
import carrier  # type: ignore[import-not-found]


async def test_random_file_is_a_package_of_equal_layers(tmp_path: Path) -> None:
    artifacts.write(tmp_path / "random.gguf", 3, rows=8, columns=64)
    packages = Packages(tmp_path / "packages", Digests(tmp_path / "digests.json"))
    found = await packages.opened(tmp_path / "random.gguf")
    sizes = {one.artifact_bytes for one in found.manifest.layers}
    assert len(found.manifest.layers) == 3
    assert len(sizes) == 1
    assert len({one.sha256 for one in found.manifest.layers}) == 3


def test_figure_is_the_median_of_the_pairs() -> None:
    ratio, fetched, raw = artifacts._figures([(60.0, 100.0), (90.0, 100.0), (10.0, 100.0)])
    assert (ratio.name, ratio.value, ratio.holds) == ("artifact_ratio", 0.6, True)
    assert (fetched.value, raw.value) == (60.0, 100.0)


def test_memory_is_let_go_of() -> None:
    carrier.warm(1 << 20)


@pytest.mark.parametrize("plan", [artifacts.FULL, artifacts.QUICK])
def test_plans_measure(plan: artifacts.Plan) -> None:
    assert plan.pairs % 2
    assert plan.layers * artifacts.ROWS * artifacts.COLUMNS * 4 <= 1.2e9
