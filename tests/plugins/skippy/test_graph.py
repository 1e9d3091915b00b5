from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshnode_skippy.graph import Graph, shares
from meshnode_skippy.wiring import Wiring

from p2p_mesh.errors import ModelError

COUNTS = st.dictionaries(st.integers(0, 7), st.integers(1, 5), min_size=1)


def slots(counts: dict[int, int]) -> np.ndarray:
    return np.repeat(np.array(sorted(counts), np.int32), [counts[slot] for slot in sorted(counts)])


def test_rows_of_two_sequences_are_computed_in_step() -> None:
    found = shares(slots({0: 3, 1: 1}))
    assert found is not None
    assert [part.tolist() for part in found] == [[0, 3], [1, 2]]


def test_sequences_share_a_graph_where_their_numbers_follow() -> None:
    found = shares(slots({0: 2, 2: 1, 3: 1}))
    assert found is not None
    assert [part.tolist() for part in found] == [[0, 1], [2, 3]]
    found = shares(slots({0: 1, 2: 2}))  # as many rows as numbers
    assert found is not None
    assert [part.tolist() for part in found] == [[0], [1, 2]]


@pytest.mark.parametrize("counts", [{3: 9}, {0: 1, 1: 1, 2: 1}, {5: 1}])
def test_one_graph_has_all_rows(counts: dict[int, int]) -> None:
    assert shares(slots(counts)) is None


@given(COUNTS)
def test_every_row_is_in_one_graph(counts: dict[int, int]) -> None:
    owners = slots(counts)
    for_graphs = shares(owners) or [np.arange(len(owners), dtype=np.int32)]
    assert sorted(np.concatenate(for_graphs).tolist()) == list(range(len(owners)))
    for rows in for_graphs:
        found = owners[rows]
        numbers, each = np.unique(found, return_counts=True)
        assert len(set(each.tolist())) == 1
        assert numbers.tolist() == list(range(numbers[0], numbers[-1] + 1))


class Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as a name and a size go."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("between", ctypes.c_ubyte * 176),
        ("name", ctypes.c_char * 64),
    )


def tensor(name: bytes, numbers: int) -> Tensor:
    one = (ctypes.c_int64 * 4)(numbers, 1, 1, 1)
    strides = (ctypes.c_size_t * 4)(4, *[4 * numbers] * 3)
    return Tensor(0, None, one, strides, name=name)


def studied(wiring: Wiring, *tensors: Tensor) -> Graph:
    graph = Graph(wiring)
    for one in tensors:
        graph._callback(ctypes.addressof(one), True, None)
    graph.study("tiny", 8)
    return graph


def test_nodes_are_found_by_their_names() -> None:
    wiring = Wiring(entry="inject", blocks=12, exit_block=11, entry_block=1)
    nodes = tensor(b"l_out-1", 5), tensor(b"l_out-10", 6), tensor(b"l_out-11", 7)
    graph = studied(wiring, *nodes)
    assert (graph.width_given, graph.width) == (5, 7)
    asked = [graph._callback(ctypes.addressof(one), True, None) for one in nodes]
    assert asked == [True, False, True]


def test_input_is_the_last_one_that_the_graph_has() -> None:
    wiring = Wiring(entry="inject", blocks=1)
    graph = studied(wiring, tensor(b"embd", 3), tensor(b"inp_scaled", 4), tensor(b"l_out-0", 5))
    assert (graph.width_given, graph.width) == (4, 0)


def test_output_is_what_the_next_block_is_fed() -> None:
    nodes = tensor(b"l_out-2", 5), tensor(b"nemotron_h_block_out-2", 6)
    graph = studied(Wiring(entry="rows", blocks=3, exit_block=2), *nodes)
    assert graph.width == 6


def test_graph_without_the_node_is_refused_in_words() -> None:
    with pytest.raises(
        ModelError, match=r"tiny computes nothing that is named nemotron.* or l_out-3"
    ):
        studied(Wiring(entry="rows", blocks=4, exit_block=3), tensor(b"l_out-2", 3))
    with pytest.raises(ModelError, match="named embd or embd_norm or"):
        studied(Wiring(entry="inject", blocks=1), tensor(b"l_out-2", 3))


def test_node_that_did_not_come_by_is_found_out() -> None:
    node = tensor(b"l_out-0", 3)
    graph = studied(Wiring(entry="rows", blocks=1, exit_block=0), node)
    graph.begin(1, None, None)
    with pytest.raises(RuntimeError, match="of 1 graphs"):
        graph.end(1)


def test_node_of_another_size_is_found_out() -> None:
    node = tensor(b"l_out-0", 3)
    graph = studied(Wiring(entry="rows", blocks=1, exit_block=0), node)
    graph.begin(2, None, None)
    assert not graph._callback(ctypes.addressof(node), False, None)
    with pytest.raises(RuntimeError, match="l_out-0 has 12 bytes, not 24"):
        graph.end(2)
