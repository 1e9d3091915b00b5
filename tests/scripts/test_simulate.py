"""The simulation's graph, what it counts, and how growth is measured."""

import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

# Scripts are programs, not a package: mypy does not look there, and the path comes first.
import simulate  # type: ignore[import-not-found]
from simulation import graph, world  # type: ignore[import-not-found]


def test_everybody_has_enough_connections_and_a_mesh() -> None:
    made = graph.make_graph(Random(1), 60)
    assert min(map(len, made.connections)) >= graph.ENOUGH
    assert min(map(len, made.meshes)) >= 1
    assert max(map(len, made.meshes)) <= graph.DEGREE_HIGH
    for node, links in enumerate(made.meshes):
        assert links.items() <= made.connections[node].items()
        assert all(made.meshes[other][node] == delay for other, delay in links.items())


def test_message_takes_the_shortest_way() -> None:
    links = [{1: 1.0, 2: 5.0}, {0: 1.0, 2: 1.0}, {0: 5.0, 1: 1.0}]
    assert graph.arrivals(links, 0, 0.5) == [0.0, 1.5, 3.0]


def test_copies_come_from_all_but_whom_one_sends_to() -> None:
    ring = [{(node + 1) % 4: 0.1, (node - 1) % 4: 0.1} for node in range(4)]
    assert graph.Graph(ring, ring).copies == 5 / 4


def test_small_mesh_agrees_at_once() -> None:
    report = world.simulate(12)
    assert report.is_agreed
    assert 0 < report.agree < 1
    assert report.announcements.messages > 12
    assert report.total.bytes > report.announcements.bytes > 0


def report(nodes: int, copies: float, agree: float = 1.0) -> Any:
    traffic = world.Traffic(1, copies, copies, copies)
    nothing = world.Traffic(0, 0, 0, 0)
    return world.Report(nodes, traffic, nothing, nothing, agree, True, 60, 1, 1, 1)


def test_growth_is_measured_by_the_mesh() -> None:
    reports = [report(100, 10), report(1000, 50), report(10_000, 400)]
    figures = {one.name: one for one in simulate.compare(reports)}
    assert figures["cpu_growth"].value == pytest.approx(0.8)
    assert figures["cpu_growth"].holds
    assert not simulate.compare([report(10, 1), report(100, 11)])[0].holds


def test_table_has_a_column_for_each_size() -> None:
    head = simulate.table([report(100, 10), report(1000, 50)]).splitlines()[0]
    assert head.split() == ["for", "each", "node", "100", "nodes", "1000", "nodes"]


@pytest.mark.parametrize("text", ["1", "100,20000"])
def test_sizes_are_within_reason(text: str) -> None:
    with pytest.raises(ValueError, match="2 to 10000"):
        simulate._sizes(text)
