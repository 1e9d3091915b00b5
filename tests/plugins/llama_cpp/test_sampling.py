from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.sampling import (
    Bias,
    Draw,
    Greedy,
    MinP,
    Penalties,
    Temperature,
    TopK,
    TopP,
    chain,
    draw_seed,
)

from p2p_mesh.core.records import Sampling


def test_defaults_leave_out_what_changes_nothing() -> None:
    assert list(chain(Sampling())) == [TopK(40), MinP(0.05), Draw()]


def test_everything_in_its_order() -> None:
    sampling = Sampling(
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        min_p=0.1,
        repeat_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias=((5, 1.0),),
    )
    assert list(chain(sampling)) == [
        Bias(((5, 1.0),)),
        Penalties(1.1, 0.25, 0.5),
        TopK(20),
        TopP(0.9),
        MinP(0.1),
        Temperature(0.7),
        Draw(),
    ]


def test_temperature_zero_is_greedy() -> None:
    assert list(chain(Sampling(temperature=0, top_k=20))) == [Greedy()]


def test_greedy_after_penalties() -> None:
    sampling = Sampling(temperature=0, presence_penalty=1)
    assert list(chain(sampling)) == [Penalties(1.0, 0.0, 1.0), Greedy()]


def test_seeds_of_draws_are_fixed_for_ever() -> None:
    """Two nodes of different versions go on with one answer: these may not change."""
    assert [draw_seed(0, 0, 0), draw_seed(7, 0, 1), draw_seed(2**63 - 1, 127, 2**20)] == [
        1137086854,
        797033856,
        733418161,
    ]


@given(st.integers(0, 2**63 - 1), st.integers(0, 127), st.integers(0, 2**31))
def test_a_seed_is_never_the_one_that_asks_for_chance(
    seed: int, choice: int, position: int
) -> None:
    assert 0 <= draw_seed(seed, choice, position) < 2**32 - 1


def test_positions_choices_and_seeds_differ() -> None:
    seeds = {draw_seed(a, b, c) for a in range(8) for b in range(8) for c in range(8)}
    assert len(seeds) == 512
