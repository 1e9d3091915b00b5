"""Who is connected to whom, and how gossip spreads: net/peers.py and GossipSub as a graph.

A node connects to others until it has ENOUGH; of these connections, some are the gossip's own mesh,
over which a message is passed on at once, to all but whom it came from.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from math import inf
from random import Random

ENOUGH = 12
"""Connections that a node seeks (net/peers.py)."""

DEGREE, DEGREE_HIGH = 6, 12
"""Of the gossip's mesh (net/gossip.py)."""

DELAY = (0.002, 0.08)
"""Seconds that a link takes one way: from the next room to another continent."""

Links = list[dict[int, float]]
"""For each node, to whom and how far away."""


@dataclass(frozen=True, slots=True)
class Graph:
    connections: Links
    meshes: Links

    @property
    def copies(self) -> float:
        """How often a node receives each message: everybody sends to all of its mesh but to whom it
        first had it from.
        """
        ends = sum(map(len, self.meshes))
        return (ends - len(self.meshes) + 1) / len(self.meshes)


def make_graph(random: Random, size: int) -> Graph:
    connections = _connect(random, size)
    return Graph(connections, _graft(random, connections))


def _connect(random: Random, size: int) -> Links:
    links: Links = [{} for _ in range(size)]
    for node in range(size):
        while len(links[node]) < min(ENOUGH, size - 1):
            other = random.randrange(size)
            if other != node:
                _join(links, node, other, random.uniform(*DELAY))
    return links


def _graft(random: Random, connections: Links) -> Links:
    meshes: Links = [{} for _ in connections]
    for node, links in enumerate(connections):
        for other in random.sample(sorted(links), len(links)):
            if len(meshes[node]) >= DEGREE:
                break
            if len(meshes[other]) < DEGREE_HIGH:
                _join(meshes, node, other, links[other])
    return meshes


def _join(links: Links, one: int, other: int, delay: float) -> None:
    links[one][other] = links[other][one] = delay


def arrivals(links: Links, source: int, hop: float) -> list[float]:
    """When a message of `source` reaches each node; each takes `hop` seconds to pass it on. Links
    are as long both ways, so this is also when the messages of each reach `source`.
    """
    found = [inf] * len(links)
    found[source] = 0.0
    waiting = [(0.0, source)]
    while waiting:
        at, node = heapq.heappop(waiting)
        if at > found[node]:
            continue
        for other, delay in links[node].items():
            if (then := at + delay + hop) < found[other]:
                found[other] = then
                heapq.heappush(waiting, (then, other))
    return found
