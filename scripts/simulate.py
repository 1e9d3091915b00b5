#!/usr/bin/env python
"""Shows what a mesh costs each of its nodes, and that this grows slower than the mesh.

Runs `core` alone, for meshes of several sizes, in one process and in virtual time. Sizes in bytes
are those of real records, signed and encoded; CPU is measured here, and what would be the same work
at each of many nodes is done once and counted as often. How gossip spreads is a graph: every node
with 12 connections, 6 of them its gossip mesh, each as long as between two rooms or two continents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from benches.figures import Figure, show
from simulation.world import HOP, Report, simulate

SIZES = (100, 1000, 10_000)
AGREE = 5.0
"""Seconds within which a change is to be everywhere."""

Row = tuple[str, Callable[[Report], str]]

ROWS: tuple[Row, ...] = (
    ("announcements a minute", lambda one: f"{one.announcements.messages:.1f}"),
    ("reports of demand a minute", lambda one: f"{one.reports.messages:.1f}"),
    ("pings and pongs a minute", lambda one: f"{one.pings.messages:.1f}"),
    ("messages a minute, all copies", lambda one: f"{one.total.copies:.0f}"),
    ("KB a minute, all copies", lambda one: f"{one.total.bytes / 1e3:.1f}"),
    ("CPU ms a minute: core, signatures counted", lambda one: f"{one.total.cpu * 1e3:.1f}"),
    ("CPU ms a minute: libp2p's gossip, estimated", lambda one: f"{_gossip(one) * 1e3:.0f}"),
    ("seconds until every node agrees", lambda one: f"{one.agree:.2f}"),
    ("seconds until a node that is gone is forgotten", lambda one: f"{one.lapse:.0f}"),
    ("KB of a newcomer's snapshot", lambda one: f"{one.snapshot / 1e3:.0f}"),
    ("CPU s of a newcomer's snapshot, counted", lambda one: f"{one.snapshot_cpu:.2f}"),
    ("seconds that this simulation took", lambda one: f"{one.took:.1f}"),
)


def _gossip(one: Report) -> float:
    return HOP * (one.announcements.messages + one.reports.messages)


def compare(reports: Sequence[Report]) -> list[Figure]:
    """How much each cost grows for each time that the mesh does: below 1, it grows slower."""
    figures = []
    for name, cost in (
        ("messages", lambda one: one.total.copies),
        ("bytes", lambda one: one.total.bytes),
        ("cpu", lambda one: one.total.cpu),
    ):
        worst = max(
            (growth(one, other, cost) for one, other in pairwise(reports)),
            default=0.0,
        )
        figures.append(Figure(f"{name}_growth", worst, "of the mesh's", "<", 1))
    agree = max(one.agree for one in reports)
    differing = sum(not one.is_agreed for one in reports)
    return [
        *figures,
        Figure("agree_s", agree, "s", "<=", AGREE),
        Figure("disagreeing", differing, "meshes", "<=", 0),
    ]


def growth(smaller: Report, larger: Report, cost: Callable[[Report], float]) -> float:
    return cost(larger) / cost(smaller) / (larger.nodes / smaller.nodes)


def table(reports: Sequence[Report]) -> str:
    head = ("for each node", *(f"{one.nodes} nodes" for one in reports))
    rows = [head, *((name, *map(say, reports)) for name, say in ROWS)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]),
                   *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )  # fmt: skip


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted({int(part) for part in text.split(",")}))
    if sizes[0] < 2 or sizes[-1] > 10_000:
        raise ValueError("sizes are of 2 to 10000 nodes")
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--nodes", type=_sizes, default=SIZES, metavar="N,N,...",
                        help="sizes, 2 to 10000 (default: 100,1000,10000)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    reports = []
    for size in given.nodes:
        print(f"a mesh of {size}", file=sys.stderr, flush=True)
        reports.append(simulate(size))
    figures = compare(reports)
    print(table(reports))
    print()
    show(figures)
    if given.json:
        sizes = {one.nodes: {name: say(one) for name, say in ROWS} for one in reports}
        found = {"figures": [one.row() for one in figures], "sizes": sizes}
        given.json.write_text(json.dumps(found, indent=2))
    return 0 if all(one.holds for one in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
