from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from meshnode_llama_cpp.graphs import graphs

ROWS = st.dictionaries(st.integers(0, 9), st.integers(1, 6)).map(
    lambda found: sorted(found.items())
)


def test_slots_that_follow_each_other_are_computed_in_step() -> None:
    assert list(graphs([(0, 3), (1, 1)])) == [((0, 1), 1), ((0,), 2)]
    assert list(graphs([(0, 2), (2, 1), (3, 1)])) == [((0,), 2), ((2, 3), 1)]


def test_without_rows_there_is_no_graph() -> None:
    assert list(graphs([])) == []


@given(ROWS)
def test_every_row_is_in_one_graph_and_each_graph_is_a_run(rows: list[tuple[int, int]]) -> None:
    left = dict(rows)
    for run, count in graphs(rows):
        assert count > 0
        assert run == tuple(range(run[0], run[-1] + 1))
        for slot in run:
            left[slot] -= count
    assert not any(left.values())
