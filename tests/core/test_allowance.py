"""So much, and no more, within some seconds."""

from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.allowance import WITHIN, Allowance


def test_allowance_fills_up_again() -> None:
    allowance = Allowance(4)
    assert [allowance.take(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert allowance.take(WITHIN / 4)
    assert not allowance.take(WITHIN / 4)


def test_clock_that_is_set_back_costs_nothing() -> None:
    allowance = Allowance(4)
    assert allowance.take(3600.0)
    assert [allowance.take(0.0) for _ in range(4)] == [True] * 3 + [False]
    assert allowance.take(WITHIN / 4)


@given(st.integers(1, 9), st.floats(0.5, 20), st.lists(st.floats(0, 3), max_size=200))
def test_no_more_than_a_burst_and_what_is_refilled(
    most: int, within: float, waits: list[float]
) -> None:
    allowance, now, taken = Allowance(most, within), 0.0, 0
    for wait in waits:
        now += wait
        taken += allowance.take(now)
        assert taken <= most + now * most / within + 1e-6
