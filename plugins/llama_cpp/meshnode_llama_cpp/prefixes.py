"""Which part of a prompt need not be computed: whose KV cells hold it already. Pure.

A slot keeps what it read and wrote until another sequence needs it. A new prompt goes where most of
it is: into a free slot that holds its beginning, or into another one to which that beginning is
copied. Tokens are compared as keys: a token's id, and for an image or a sound numbers below zero
that are made from its content.

Nothing is reused that is not there whole. A recurrent state cannot go back: it is used where it
stands, at the very end of what it read, or restored from a snapshot. The cells of a sliding window
are used again, and llama.cpp does not tell which: its smallest position says nothing about gaps. So
once they were all in use, the same holds there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

COPY = 64
"""Tokens that a copy must save at least."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the model's memory allows."""

    trims: bool = True
    """Cells at the end can be given up, and what came before is as it was."""
    cells: int = 0
    """Of a sliding window's cache; 0: the model has none."""
    copy: int = COPY
    """Tokens that a copy must save: it moves all cells of a slot, however few are wanted."""

    def forgets(self, highest: int) -> bool:
        """Whether a sequence that once had so many tokens cannot be cut back."""
        return not self.trims or bool(self.cells and highest > self.cells)


def rules_of(*, is_recurrent: bool, window: int, rows: int, context: int) -> Rules:
    """Of a model whose sliding layers keep `window` tokens and a call beside them (0: all, or it
    has none), with calls of so many rows and slots of so many tokens.
    """
    return Rules(
        trims=not is_recurrent,
        cells=window + rows if window else 0,
        copy=max(COPY, context // 64),  # the more cells a slot has, the more it costs to move them
    )


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds."""

    keys: Sequence[int] = ()
    used: int = 0
    """When it was last used; larger is later."""
    highest: int = 0
    """The most tokens that the slot had, since it was empty."""
    live: bool = False
    coming: Sequence[int] = ()
    """The whole prompt of a live sequence that is reading it; `keys` is what was read yet."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a sequence goes, and the tokens of its prompt that are there then."""

    slot: int
    kept: int = 0
    source: int | None = None
    """The slot whose cells are copied first."""


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many keys two sequences have in common from their beginning on."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:  # one[:low] is common, one[:high] is not
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def usable(prompt: Sequence[int], held: Held, rules: Rules) -> int:
    """How many tokens of the prompt can be taken over. The last is computed always: what follows
    it is asked for.
    """
    count = common(prompt[:-1], held.keys)
    if held.live and held.highest > len(held.keys) and rules.forgets(held.highest):
        return 0  # more is on its way into it, and could not be cut off
    if count == len(held.keys):
        return count
    if rules.forgets(held.highest):
        return 0
    # Not into the middle of an image: its cells were computed together.
    while count and prompt[count - 1] < 0 and prompt[count - 1] in (
        prompt[count], held.keys[count],
    ):  # fmt: skip
        count -= 1
    return count


def seat(prompt: Sequence[int], slots: Sequence[Held], rules: Rules) -> Seat | None:
    """Where the prompt goes now; None where it waits: for a slot, or for another sequence that is
    reading the same beginning.
    """
    free = [place for place, held in enumerate(slots) if not held.live]
    if not free:
        return None
    reach = [usable(prompt, held, rules) for held in slots]
    best = max(range(len(slots)), key=lambda place: reach[place])
    if _comes(prompt, slots, reach[best], rules):
        return None
    victim = min(free, key=lambda place: (bool(slots[place].keys), slots[place].used))
    own = max(free, key=lambda place: reach[place])
    # In place only where that does not cost another conversation its cells.
    if 2 * reach[own] < len(slots[own].keys):
        own = victim
    if best not in (own, victim) and reach[best] - rules.copy >= reach[own]:
        return Seat(victim, reach[best], source=best)
    return Seat(own, reach[own])


def _comes(prompt: Sequence[int], slots: Sequence[Held], now: int, rules: Rules) -> bool:
    """Whether waiting for a sequence that is reading will save more than there is."""
    return any(
        held.live and usable(prompt, _read(held), rules) - now >= rules.copy
        for held in slots
        if len(held.keys) < len(held.coming)
    )


def _read(held: Held) -> Held:
    """What the slot will hold when the prompt has been read."""
    return Held(keys=held.coming, highest=max(held.highest, len(held.coming)))


class Snapshots:
    """States that were saved after a prompt, by what had been read; the oldest go first. `drop` is
    told of each that goes.
    """

    def __init__(self, most_bytes: int, drop: Callable[[Any], None] = lambda _: None) -> None:
        self._most, self._drop = most_bytes, drop
        self._kept: OrderedDict[tuple[int, ...], Sized] = OrderedDict()
        self.size = 0

    def wants(self, keys: Sequence[int], size: int) -> bool:
        """Whether a state of so many bytes is new, and not too large."""
        return size <= self._most and tuple(keys) not in self._kept

    def keep(self, keys: Sequence[int], state: Sized) -> None:
        """Of one that it `wants`."""
        self._kept[tuple(keys)] = state
        self.size += len(state)
        while self.size > self._most:
            _, oldest = self._kept.popitem(last=False)
            self.size -= len(oldest)
            self._drop(oldest)

    def find(self, prompt: Sequence[int]) -> tuple[int, Sized] | None:
        """The longest that the prompt begins with, and its length."""
        before = tuple(prompt[:-1])
        found = max(
            (name for name in self._kept if before[: len(name)] == name),
            key=len, default=None,
        )  # fmt: skip
        if found is None:
            return None
        self._kept.move_to_end(found)
        return len(found), self._kept[found]
