"""The bench of expert shards: which experts a floor keeps, and what it says of the perplexity."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2p_mesh.core.experts.assignment import MIN_MASS
from p2p_mesh.core.experts.ranking import LayerRanking, Ranking
from p2p_mesh.core.names import Digest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import experts  # type: ignore[import-not-found]


def ranking(*masses: tuple[float, ...]) -> Ranking:
    layers = tuple(
        LayerRanking(layer=number, counts=(9,) * len(row), masses=row)
        for number, row in enumerate(masses)
    )
    return Ranking(model=Digest("0" * 64), tokens=9, experts=len(masses[0]), used=2, layers=layers)


EVEN, SKEWED = (2.0, 2.0, 2.0, 2.0, 2.0), (1.0, 0.5, 6.0, 2.0, 0.5)


@pytest.mark.parametrize(("floor", "kept"), [(0.5, [2, 3]), (0.85, [0, 2, 3]), (1.0, range(5))])
def test_a_floor_keeps_the_most_used_experts(floor: float, kept: list[int]) -> None:
    assert experts.best(ranking(SKEWED), floor, least=2) == [list(kept)]


def test_all_layers_keep_equally_many() -> None:
    found = experts.best(ranking(EVEN, SKEWED), 0.7, least=2)
    assert found == [[0, 1, 2], [0, 2, 3]]


def test_no_fewer_are_kept_than_a_token_uses() -> None:
    assert experts.best(ranking(SKEWED), 0.1, least=3) == [[0, 2, 3]]


def test_skew_is_the_share_of_the_most_used_fifth() -> None:
    assert experts.skew(ranking(EVEN, SKEWED)) == pytest.approx((0.2 + 0.6) / 2)


def test_surprise_is_the_logarithm_of_what_was_not_expected() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    assert experts.surprise(logits, 0) == pytest.approx(math.log(2))
    assert experts.surprise(logits + 100, 1) == pytest.approx(math.log(4), rel=1e-5)


def test_figure_that_is_wanted_is_that_of_the_default_floor() -> None:
    points = {0.5: experts.Point(0.51, 4, 4.0), MIN_MASS: experts.Point(0.9, 9, 2.08)}
    found = {one.name: one for one in experts.figures(points, 2.0)}
    assert found["perplexity_ratio_at_default"].value == pytest.approx(1.04)
    assert found["perplexity_ratio_at_default"].holds
    assert found["perplexity_ratio_0.50"].value == 2
    assert (found["experts_0.50"].value, found["mass_0.50"].value) == (4, 0.51)
    assert found["least_floor"].value == MIN_MASS
    points |= {MIN_MASS: experts.Point(0.9, 9, 2.11), 1.0: experts.Point(1.0, 16, 2.0)}
    missed, _, least, *_ = experts.figures(points, 2.0)
    assert not missed.holds
    assert least.value == 1


def test_shard_with_all_experts_is_as_good_as_the_whole_model() -> None:
    extent = experts.Extent(texts=2, floors=(0.5, 1.0))
    found = {one.name: one.value for one in experts.curve(extent)}
    assert found["perplexity_ratio_1.00"] == 1.0
    assert found["perplexity_ratio_0.50"] > 1.0
    assert found["experts_0.50"] < found["experts_1.00"] == 32


@pytest.mark.parametrize("extent", [experts.FULL, experts.QUICK])
def test_plans_have_texts_and_floors(extent: Any) -> None:
    told = json.loads(extent.told.read_text())
    assert min(map(len, told.values())) >= extent.texts
    assert {0.5, 1.0} <= set(extent.floors)
    assert extent.model.stat().st_size <= 12_000_000
