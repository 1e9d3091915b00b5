"""Which of the nodes that take part holds most of what a prompt needs: of the routing that the
routers of the whole model would choose for its rows, the share that goes to the experts of each
part.

The rows are those of one call, as a shard computes them: in the first layer with experts they are
exactly those of the whole model, in later ones nearly, as far as the shard answers as it would.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
from meshnode_llama_cpp.graphs import graphs
from numpy.typing import NDArray

from meshnode_expert_shards.routers import Floats, Router, Rule
from meshnode_expert_shards.tap import Graph
from p2p_mesh.core.sessions import LESS

LEAST = 8
"""Rows below which nothing is said of a prompt."""
_SURE = 2.0
"""Standard errors: what so few rows say by chance is believed less."""

Masses = NDArray[np.float64]
"""By row and part."""
Has = Mapping[int, NDArray[np.float64]]
"""Of each layer, by part and expert: 1 where the part has it."""


def weigh(
    given: Mapping[int, Floats], routers: Mapping[int, Router], rule: Rule, has: Has
) -> Masses:
    """The routing mass of each part for each row, as the mean of the layers that were heard."""
    found = [routers[layer].shares(rows, rule) @ has[layer].T for layer, rows in given.items()]
    masses: Masses = np.mean(found, axis=0)
    return masses


def better(masses: Masses, own: int) -> int | None:
    """The part that holds most, where that is materially more than one's own, and no chance."""
    most = int(np.argmax(masses.mean(0)))
    more = masses[:, most] - masses[:, own]
    error = more.std(ddof=1) / math.sqrt(len(more))
    return most if more.mean() >= max(LESS, _SURE * error) else None


def unmasked(parts: Sequence[Sequence[bytes]], layers: Sequence[int], experts: int) -> Has:
    """Of the masks of all parts, each with one of every layer: bit e of it stands for expert e."""
    return {
        layer: np.array([_bits(part[place], experts) for part in parts])
        for place, layer in enumerate(layers)
    }


def _bits(mask: bytes, experts: int) -> NDArray[np.float64]:
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=experts, bitorder="little")
    return bits.astype(np.float64)


def alone(rows: Mapping[int, int], slots: Container[int]) -> Graph | None:
    """The graph of a call in which most rows of these slots are, and no others; None: too few
    are.
    """
    own = [
        Graph(number, count * len(run))
        for number, (run, count) in enumerate(graphs(sorted(rows.items())))
        if all(slot in slots for slot in run)
    ]
    most = max(own, key=lambda graph: graph.rows, default=Graph(0, 0))
    return most if most.rows >= LEAST else None
