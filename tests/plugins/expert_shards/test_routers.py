"""What routers choose, worked out beside llama.cpp, against the same worked out one by one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_expert_shards.routers import RULES, Router, read, rule_of

from p2p_mesh.errors import ModelError
from p2p_mesh.testing.models import write_moe
from tests.plugins.expert_shards.demo import Cut, cut

EXPERTS, WIDTH, ROWS = 12, 6, 4

LIKELY: dict[str, Callable[[list[float]], list[float]]] = {
    "_softmax": lambda logits: [math.exp(one) / sum(map(math.exp, logits)) for one in logits],
    "_sigmoid": lambda logits: [1 / (1 + math.exp(-one)) for one in logits],
    "_sqrt_softplus": lambda logits: [math.sqrt(math.log1p(math.exp(one))) for one in logits],
}


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_hand(router: Router, row: Any, kind: str) -> dict[int, float]:
    """The share of each expert that is chosen."""
    logits = [float(np.dot(row, one)) for one in router.weights]
    if router.bias is not None:
        logits = [one + float(more) for one, more in zip(logits, router.bias, strict=True)]
    likely = LIKELY[kind](logits)
    scores = dict(enumerate(likely))
    if router.leaning is not None:
        scores = {one: scores[one] + float(router.leaning[one]) for one in scores}
    if router.groups > 1:
        width = EXPERTS // router.groups
        groups = [range(start, start + width) for start in range(0, EXPERTS, width)]
        best = sorted(groups, key=lambda group: -sum(sorted(scores[one] for one in group)[-2:]))
        scores = {one: scores[one] for group in best[: router.groups_used] for one in group}
    chosen = sorted(scores, key=lambda one: -scores[one])[: router.used]
    return {one: likely[one] / sum(likely[other] for other in chosen) for one in chosen}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@given(
    seed=st.integers(0, 10**6),
    used=st.integers(1, 4),
    biased=st.booleans(),
    leans=st.booleans(),
    groups=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
)
def test_shares_are_those_worked_out_by_hand(
    rule: Any, seed: int, used: int, biased: bool, leans: bool, groups: tuple[int, int]
) -> None:
    router = Router(
        random(seed, EXPERTS, WIDTH), used, *groups,
        bias=random(seed + 1, EXPERTS) if biased else None,
        leaning=random(seed + 2, EXPERTS) / 4 if leans else None,
    )  # fmt: skip
    rows = random(seed + 3, ROWS, WIDTH)
    found = router.shares(rows, rule)
    for shares, row in zip(found, rows, strict=True):
        wanted = by_hand(router, row, rule.__name__)
        assert set(np.flatnonzero(shares)) == set(wanted)
        for one, share in wanted.items():
            assert shares[one] == pytest.approx(share, rel=1e-3)


@pytest.mark.parametrize("stored", ["half", "brain"])
def test_short_weights_are_multiplied_as_llama_does_it(stored: str) -> None:
    exact, rows = random(1, EXPERTS, WIDTH), random(2, ROWS, WIDTH)
    if stored == "half":
        weights: Any = exact.astype(np.float16)
        rounded = weights.astype(np.float32)
        given = rows.astype(np.float16).astype(np.float32)
    else:
        weights = (exact.view(np.uint32) >> 16).astype(np.uint16)
        rounded = (weights.astype(np.uint32) << 16).view(np.float32)
        given = rows
    found = Router(weights, 3).shares(rows, RULES[0])
    wanted = Router(rounded, 3).shares(given, RULES[0])
    np.testing.assert_allclose(found, wanted, atol=5e-3 if stored == "brain" else 1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_is_the_one_that_comes_to_the_same(rule: Any) -> None:
    heard = {}
    for layer in range(4):
        router, rows = Router(3 * random(layer, EXPERTS, WIDTH), 4), random(9 + layer, 1, WIDTH)
        heard[layer] = router, rows, router.shares(rows, rule)
    assert rule_of(heard) is rule


def test_rule_that_is_not_known_is_none() -> None:
    router, rows = Router(random(1, EXPERTS, WIDTH), 2), random(2, 1, WIDTH)
    other = np.roll(router.shares(rows, RULES[0]), 3, axis=1)
    assert rule_of({0: (router, rows, other)}) is None
    assert rule_of({0: (router, rows * np.nan, other)}) is None
    assert rule_of({}) is None


def test_shard_knows_the_routers_of_the_whole_model(halves: Cut) -> None:
    found = read(halves.routers, halves.shards[1])
    assert (found.experts, found.layers) == (32, (0, 1, 2, 3))
    assert found.own == dict.fromkeys(range(4), tuple(range(16, 32)))
    router = found.whole[2]
    assert (router.weights.shape, router.used, router.groups) == ((32, 192), 4, 1)
    own = router.of(found.own[2])
    np.testing.assert_array_equal(own.weights, router.weights[16:])


def test_groups_and_what_leans_are_read_too(tmp_path: Path) -> None:
    write_moe(tmp_path / "moe.gguf", kind="grouped", experts=16)
    made = cut(tmp_path / "moe.gguf", tmp_path, [0, 1, 4, 5, 8, 9, 12, 13])
    found = read(made.routers, made.shards[0])
    router = found.whole[1]
    assert (0 in found.whole, router.groups, router.groups_used) == (False, 4, 2)
    assert router.leaning is not None
    own = router.of(found.own[1])
    assert own.leaning is not None
    assert own.leaning.tolist() == [router.leaning[one] for one in found.own[1]]


def test_what_is_no_shard_or_of_another_model_is_refused(halves: Cut, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no expert shard"):
        read(halves.routers, halves.whole)
    with pytest.raises(ModelError, match="cannot be read"):
        read(tmp_path / "none.gguf", halves.shards[0])
    write_moe(tmp_path / "moe.gguf", experts=16)
    other = cut(tmp_path / "moe.gguf", tmp_path, range(16))
    with pytest.raises(ModelError, match="not of 32 experts"):
        read(other.routers, halves.shards[0])
