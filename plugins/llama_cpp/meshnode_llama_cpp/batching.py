"""Which tokens go into the next call of llama.cpp: the choice, and nothing else.

Every sequence that is decoding gets its one row, so that all answers grow at one pace. What is
left of the call goes to one prompt, the oldest that is not yet read; a smaller share of it
while answers are running, because they wait for the call to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    rows: int = 512
    """Of one call, at most."""
    chunk: int = 128
    """Rows of a prompt, at most, in a call that also decodes."""


EXACT = Limits(rows=48, chunk=48)
"""Measured: a row's logits are bit-equal in calls of up to 48 rows, on a CPU with flash attention,
if each sequence has a KV memory of its own (context.py)."""


def shares(waiting: Sequence[int], limits: Limits) -> list[int]:
    """How many of its tokens each sequence feeds now.

    `waiting` has, for each live sequence in order of age, how many tokens it has yet to feed: one
    if it is decoding, more if its prompt is not read.
    """
    taken = [0] * len(waiting)
    room = limits.rows
    for place, count in enumerate(waiting):
        if count == 1 and room:
            taken[place] = 1
            room -= 1
    if room < limits.rows:
        room = min(room, limits.chunk)
    reading = next((place for place, count in enumerate(waiting) if count > 1), None)
    if reading is not None:
        taken[reading] = min(waiting[reading], room)
    return taken
