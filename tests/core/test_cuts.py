"""Where a model is cut, once the nodes are known."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from p2p_mesh.core.costs import PROCESS, Layer, StageModel
from p2p_mesh.core.cuts import Cuts
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.sites import Site

MB = 10**6
LARGE = 10**12


def site(free: int = LARGE, bandwidth: float = 1e9) -> Site:
    return Site(PeerId("p"), free=free, bandwidth=bandwidth)


def test_equal_nodes_get_equal_parts() -> None:
    best = Cuts(StageModel("m", "", (Layer(MB),) * 8)).best([site(), site()])
    assert best is not None
    assert best.ends == (4, 8)


def test_head_counts_as_a_part() -> None:
    model = StageModel("m", "", (Layer(MB),) * 8, last_bytes=2 * MB)
    best = Cuts(model).best([site(), site()])
    assert best is not None
    assert best.ends == (5, 8)


def test_node_that_is_much_faster_gets_all_that_it_can_hold() -> None:
    cuts = Cuts(StageModel("m", "", (Layer(MB),) * 8))
    best, alike = (
        cuts.best([site(bandwidth=9e9), site()]),
        cuts.best([site(), site(bandwidth=1.1e9)]),
    )
    assert best is not None
    assert alike is not None
    assert (best.ends, alike.ends) == ((7, 8), (4, 8))


def test_barred_cuts_are_not_made() -> None:
    model = StageModel(
        "m", "", (Layer(MB),) * 8,
        obstacle=lambda start, end: "no" if start % 3 or (end % 3 and end != 8) else "",
    )  # fmt: skip
    cuts = Cuts(model)
    best = cuts.best([site(), site()])
    assert best is not None
    assert best.ends == (3, 8)
    assert cuts.need(0, 4) is None
    assert cuts.best([site()] * 4) is None
    assert not cuts.is_possible([site()] * 4)


def test_least_stage_is_a_part() -> None:
    assert Cuts(StageModel("m", "", (Layer(0),))).least() is None
    model = StageModel("m", "", (Layer(MB), Layer(9 * MB)), context=0)
    assert Cuts(model).least() == model.need(0, 1)


SIZES = st.lists(st.integers(1, 9).map(lambda size: size * 100 * MB), min_size=2, max_size=7)
NODES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=3
)  # fmt: skip


@given(SIZES, NODES)
def test_no_other_cut_is_better(sizes: list[int], nodes: list[tuple[int, int]]) -> None:
    model = StageModel("m", "", tuple(map(Layer, sizes)), last_bytes=50 * MB, context=256)
    sites = [site(PROCESS + free * 100 * MB, speed * 1e9) for free, speed in nodes]
    cuts = Cuts(model)
    costs = []
    for inner in combinations(range(1, len(sizes)), len(sites) - 1):
        ranges = list(zip(pairwise((0, *inner, len(sizes))), sites, strict=True))
        if all(model.need(*one) <= where.free for one, where in ranges):
            seconds = [model.read(*one) / where.speed for one, where in ranges]
            costs.append(sum(seconds) + max(seconds))
    best = cuts.best(sites)
    assert cuts.is_possible(sites) == (best is not None) == bool(costs)
    if best is not None:
        assert abs(best.cost - min(costs)) < 1e-9
