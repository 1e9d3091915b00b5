"""What a cache of experts would have had to read for a recorded trace, and how fast that could be.
Pure.

A trace has, for each token and each layer, the experts that the router chose.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

Trace = Sequence[Sequence[Sequence[int]]]


def misses(trace: Trace, capacity: int, start: int = 0) -> int:
    """How many experts are brought in from token number `start` on, by a cache of so many experts
    of whichever layer that gives up the one which was not chosen for longest.
    """
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    missed = 0
    for place, token in enumerate(trace):
        for layer, chosen in enumerate(token):
            for expert in chosen:
                missed += _take(held, (layer, int(expert)), capacity) and place >= start
    return missed


def _take(held: OrderedDict[tuple[int, int], None], key: tuple[int, int], capacity: int) -> bool:
    """Whether it had to be brought in."""
    if key in held:
        held.move_to_end(key)
        return False
    held[key] = None
    if len(held) > capacity:
        held.popitem(last=False)
    return True


def choices(trace: Trace, start: int = 0) -> int:
    """How many experts the tokens from number `start` on were routed to, in all layers."""
    return sum(len(chosen) for token in trace[start:] for chosen in token)


def concentration(trace: Trace, favoured: int) -> float:
    """The share of all choices that so many experts of each layer take, those that are chosen most
    often.
    """
    taken = 0
    for layer in range(len(trace[0])):
        counts = Counter(int(expert) for token in trace for expert in token[layer])
        taken += sum(count for _, count in counts.most_common(favoured))
    return taken / choices(trace)


def bound(tokens: int, *, read: float, bandwidth: float, compute: float) -> float:
    """Tokens a second where so many bytes are read for them, at so many bytes a second, and each
    takes so many seconds to compute; nothing overlaps.
    """
    return tokens / (read / bandwidth + tokens * compute)
