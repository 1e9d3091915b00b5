"""When to try again."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.backoff import delay


@given(st.integers(0, 10_000), st.integers())
def test_delay_doubles_up_to_its_bound(attempt: int, seed: int) -> None:
    whole = min(60.0, 0.5 * 2.0 ** min(attempt, 32))
    assert whole / 2 <= delay(attempt, Random(seed)) <= whole
