"""The slots of the KV cache: who sits where, and what is still there of those who have gone.

Performs what prefixes.py decides.
"""

from __future__ import annotations

from itertools import count

from meshnode_llama_cpp.memory import SNAPSHOTS
from meshnode_llama_cpp.prefixes import Held, Seat, Snapshots, seat
from meshnode_llama_cpp.steps import Memory


class Sitter:
    """A sequence as its slot sees it: its tokens by position, and how many the cache has."""

    def __init__(self, keys: list[int]) -> None:
        self.keys = keys
        self.read = 0
        self.start = len(keys)
        """Where its first token of its own will stand: before that it reads."""
        self.highest = 0
        """The most tokens that its slot had, since it was empty; guesses count."""


class Seats:
    def __init__(self, context: Memory, slots: int) -> None:
        self._context = context
        self._gone = [Held() for _ in range(slots)]
        self._live: dict[int, Sitter] = {}
        self._seen: dict[int, Held] = {}
        self._clock = count(1)
        self._snapshots = Snapshots(SNAPSHOTS, context.drop)

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
        if fresh:
            self._clear(sitter, found.slot)
        elif not self._restore(sitter, found):
            self._keep(sitter, found, held)
        self._live[found.slot] = sitter
        return found.slot

    def leave(self, slot: int) -> None:
        """The sequence has ended; what the cache has of it stays until somebody needs the slot."""
        sitter = self._live.pop(slot)
        self._seen.pop(slot, None)
        keys = sitter.keys[: sitter.read]
        self._gone[slot] = Held(keys=keys, used=next(self._clock), highest=sitter.highest)

    def drop(self, slot: int) -> None:
        """The sequence has ended, and nobody knows how much of it the cache has."""
        self._clear(self._live[slot], slot)
        self.leave(slot)

    def clear(self) -> None:
        """The cache is empty, and what was saved is gone: who sits in it reads again."""
        self._snapshots = Snapshots(SNAPSHOTS, self._context.drop)
        self._gone = [Held() for _ in self._gone]
        self._seen.clear()

    def save(self, slot: int) -> None:
        """Keeps the state of a sequence for later ones that begin alike."""
        sitter = self._live[slot]
        keys = sitter.keys[: sitter.read]
        if self._snapshots.wants(keys, self._context.state_size(slot)):
            self._snapshots.keep(keys, self._context.save(slot))

    def _held(self, slot: int) -> Held:
        sitter = self._live.get(slot)
        if sitter is None:
            return self._gone[slot]
        seen = self._seen.get(slot)
        if seen is None or (len(seen.keys), seen.highest) != (sitter.read, sitter.highest):
            reads = sitter.read < sitter.start
            seen = self._seen[slot] = Held(
                keys=sitter.keys[: sitter.read],
                highest=sitter.highest,
                live=True,
                coming=sitter.keys[: sitter.start] if reads else (),
            )
        return seen

    def _clear(self, sitter: Sitter, slot: int) -> None:
        self._context.forget(slot)
        sitter.read = sitter.highest = 0

    def _restore(self, sitter: Sitter, found: Seat) -> bool:
        """Puts a snapshot into the slot, if there is one that has more of the sequence. Nothing
        may be copied there before: a copy is carried out later, with the next call.
        """
        saved = self._snapshots.find(sitter.keys)
        if saved is None or saved[0] <= found.kept:
            return False
        self._context.restore(found.slot, saved[1])
        sitter.read = saved[0]
        # A state has the cells of the window alone: it cannot be cut back.
        sitter.highest = max(saved[0], self._context.rules.cells + 1)
        return True

    def _keep(self, sitter: Sitter, found: Seat, held: list[Held]) -> None:
        """Leaves what was found in the slot, and nothing else."""
        if not found.kept:
            self._clear(sitter, found.slot)
            return
        origin = found.slot if found.source is None else found.source
        sitter.read, sitter.highest = found.kept, held[origin].highest
        if found.source is not None:
            self._context.copy(found.source, found.slot)
        if not self._context.rules.forgets(sitter.highest):
            self._context.trim(found.slot, found.kept)
