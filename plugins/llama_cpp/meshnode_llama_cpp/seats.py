"""The slots of the KV cache: who sits where, and what is still there of those who have gone.

Performs what prefixes.py decides.
"""

from __future__ import annotations

from itertools import count

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.prefixes import Held, Snapshots, seat

SNAPSHOTS = 256 * 2**20
"""Bytes of states that are kept of a model whose memory cannot be cut back."""


class Sitter:
    """A sequence as its slot sees it: its tokens by position, and how many the cache has."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys
        self.read = 0
        self.highest = 0
        """The most tokens that its slot had, since it was empty; guesses count."""


class Seats:
    def __init__(self, context: Context, slots: int) -> None:
        self._context = context
        self._gone = [Held() for _ in range(slots)]
        self._live: dict[int, Sitter] = {}
        self._clock = count(1)
        self._snapshots = Snapshots(SNAPSHOTS)

    @property
    def is_full(self) -> bool:
        return len(self._live) == len(self._gone)

    def take(self, sitter: Sitter, *, fresh: bool = False) -> int | None:
        """A slot for the sequence, with as much of its keys in it as can be had; None where it
        waits. `fresh`: every row of its prompt is to be computed.
        """
        held = [self._held(slot) for slot in range(len(self._gone))]
        found = seat(sitter.keys, held, self._context.rules)
        if found is None:
            return None
        sitter.highest = held[found.slot if found.source is None else found.source].highest
        if found.source is not None:
            self._context.copy(found.source, found.slot)
        sitter.read = self._keep(sitter, found.slot, 0 if fresh else found.kept)
        self._live[found.slot] = sitter
        return found.slot

    def leave(self, slot: int) -> None:
        """The sequence has ended; what the cache has of it stays until somebody needs the slot."""
        sitter = self._live.pop(slot)
        self._gone[slot] = Held(
            keys=sitter.keys[: sitter.read],
            used=next(self._clock),
            highest=sitter.highest,
        )

    def save(self, slot: int) -> None:
        """Keeps the state of a sequence for later ones that begin alike."""
        sitter = self._live[slot]
        self._snapshots.keep(sitter.keys[: sitter.read], self._context.save(slot))

    def _held(self, slot: int) -> Held:
        sitter = self._live.get(slot)
        if sitter is None:
            return self._gone[slot]
        return Held(
            keys=sitter.keys[: sitter.read],
            highest=sitter.highest,
            live=True,
            coming=sitter.keys,
        )

    def _keep(self, sitter: Sitter, slot: int, kept: int) -> int:
        """Leaves `kept` tokens in the slot, or puts more there from a snapshot; returns how many."""
        saved = self._snapshots.find(sitter.keys)
        if saved is not None and saved[0] > kept:
            kept = sitter.highest = saved[0]
            self._context.restore(slot, saved[1])
        elif not kept:
            sitter.highest = 0
            self._context.forget(slot)
        elif not self._context.rules.forgets(sitter.highest):
            self._context.trim(slot, kept)
        return kept
