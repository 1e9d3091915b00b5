"""What a pipeline can give at best."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/benches"))

import bounds  # type: ignore[import-not-found]

# Milliseconds of a step on 2 EPYC cores: two rows cost more than twice what one does.
CURVE = {1: 11.0, 2: 27.4, 3: 34.1, 4: 37.6, 5: 44.0, 6: 49.7, 7: 52.0, 8: 54.1}


def test_partitions_are_all_and_once() -> None:
    assert list(bounds.partitions(4)) == [(4,), (3, 1), (2, 2), (2, 1, 1), (1, 1, 1, 1)]
    assert len(list(bounds.partitions(16))) == 231


def test_one_micro_batch_gains_nothing() -> None:
    assert bounds.round_seconds((8,), CURVE, 2) == 54.1


def test_stages_share_the_work_of_several_micro_batches() -> None:
    assert bounds.round_seconds((1, 1, 1, 1), CURVE, 2) == 22.0


def test_a_round_lasts_as_long_as_its_longest_micro_batch() -> None:
    assert bounds.round_seconds((4, 1), CURVE, 2) == 37.6


@pytest.mark.parametrize(("streams", "parts"), [(1, (1,)), (4, (1, 1, 1, 1)), (8, (4, 4))])
def test_the_best_cut_is_taken(streams: int, parts: tuple[int, ...]) -> None:
    found = bounds.best_rate(streams, CURVE, 2)
    assert found == pytest.approx(streams / bounds.round_seconds(parts, CURVE, 2))


@given(st.lists(st.floats(0.1, 100.0), min_size=8, max_size=8), st.integers(1, 8))
def test_more_stages_never_lose(times: list[float], streams: int) -> None:
    steps = dict(enumerate(times, 1))
    alone, two, three = (bounds.best_rate(streams, steps, stages) for stages in (1, 2, 3))
    assert alone <= two * (1 + 1e-9)
    assert two <= three * (1 + 1e-9)
    assert three <= alone * 3 * (1 + 1e-9)
