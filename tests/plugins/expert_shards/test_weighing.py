"""Who holds most of what a prompt needs, against the same worked out one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.parts import mask
from meshnode_expert_shards.routers import RULES, Router
from meshnode_expert_shards.tap import Graph
from meshnode_expert_shards.weighing import LEAST, alone, better, unmasked, weigh

from p2p_mesh.core.sessions import LESS

EXPERTS, WIDTH, ROWS = 12, 5, 9


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(st.integers(0, 10**6), st.integers(1, 5), st.sets(st.integers(0, 11), min_size=1))
def test_mass_is_the_share_of_the_routing_that_goes_to_the_experts_of_a_part(
    seed: int, used: int, chosen: set[int]
) -> None:
    routers = {layer: Router(random(seed + layer, EXPERTS, WIDTH), used) for layer in (0, 3)}
    given = {layer: random(seed + 9 + layer, ROWS, WIDTH) for layer in routers}
    dealt = [[mask(sorted(part), EXPERTS)] * 2 for part in (chosen, range(EXPERTS))]
    found = weigh(given, routers, RULES[0], unmasked(dealt, (0, 3), EXPERTS))
    assert found.shape == (ROWS, 2)
    np.testing.assert_allclose(found[:, 1], 1)
    for row in range(ROWS):
        kept = []
        for layer, router in routers.items():
            logits = [float(np.dot(given[layer][row], one)) for one in router.weights]
            best = sorted(range(EXPERTS), key=lambda one: -logits[one])[:used]
            weights = {one: np.exp(logits[one]) for one in best}
            kept.append(sum(weights[one] for one in best if one in chosen) / sum(weights.values()))
        assert found[row, 0] == pytest.approx(np.mean(kept), rel=1e-4, abs=1e-6)


def test_part_that_holds_materially_more_is_better() -> None:
    masses = np.full((20, 3), 0.8)
    assert better(masses, 0) is None
    masses[:, 2] += LESS / 2
    assert better(masses, 0) is None
    masses[:, 2] += LESS
    assert [better(masses, own) for own in range(3)] == [2, 2, None]


def test_what_so_few_rows_say_by_chance_is_not_believed() -> None:
    masses = np.full((8, 2), 0.5)
    masses[:, 1] += [0.5, -0.45] * 4
    assert better(masses, 0) is None
    masses = np.tile(masses, (400, 1))
    assert better(masses, 0) == 1


def test_routers_that_give_no_numbers_say_nothing() -> None:
    assert better(np.full((8, 2), np.nan), 0) is None


def test_each_part_has_its_experts_of_each_layer() -> None:
    dealt = [(mask([0, 9], 10), mask([1], 10)), (mask([2], 10), mask([3], 10))]
    found = unmasked(dealt, (4, 7), 10)
    assert [sorted(np.flatnonzero(row)) for row in found[4]] == [[0, 9], [2]]
    assert [sorted(np.flatnonzero(row)) for row in found[7]] == [[1], [3]]


@pytest.mark.parametrize(
    ("rows", "slot", "wanted"),
    [
        ({0: 50}, 0, Graph(0, 50)),
        ({0: LEAST - 1}, 0, None),
        ({0: 1, 1: 50}, 1, Graph(1, 49)),
        ({0: 1, 2: 50}, 2, Graph(1, 50)),
        ({0: 50, 2: 1}, 0, Graph(0, 50)),
        ({0: 1, 1: 50, 2: 1}, 1, Graph(1, 49)),
        ({0: 40, 1: 50}, 1, Graph(1, 10)),
        ({0: 40, 1: 50}, 0, None),
        ({0: 9, 1: 9}, 1, None),
    ],
)
def test_graph_with_one_slot_alone_is_found(
    rows: dict[int, int], slot: int, wanted: Graph | None
) -> None:
    assert alone(rows, {slot}) == wanted


def test_choices_of_one_prompt_are_alone_together() -> None:
    assert alone({0: 9, 1: 9}, {0, 1}) == Graph(0, 18)
    assert alone({0: 9, 1: 1, 2: 9}, {0, 2}) == Graph(1, 8)
