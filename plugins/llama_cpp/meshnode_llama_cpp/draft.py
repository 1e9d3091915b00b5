"""Guesses by a small model of the same vocabulary.

It has a KV cache with the same slots as the large one, reads what that has read, and says greedily
how it would go on. Whether a guess was right is not its affair.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from meshnode_llama_cpp.context import Context, Plan
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.prefixes import common
from p2p_mesh.errors import ModelError

AT_ONCE = 64
"""Tokens that are read in a call: all answers wait for it."""
_SMOOTH = 0.2
_SPARE = 128
"""Tokens by which two vocabularies may differ: paddings, mostly."""
_COMPARED = 1024


class Draft:
    def __init__(self, model: Model, context: Context, target: Model, slots: int) -> None:
        """Raises ModelError where the two do not go together."""
        if not context.rules.trims or context.rules.cells:
            raise ModelError(f"{model.name} cannot take back what it read: it cannot draft")
        if not _alike(model, target):
            raise ModelError(
                f"{model.name} has another vocabulary than {target.name}: it cannot draft for it"
            )
        self._context = context
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._vocabulary = min(model.token_count, target.token_count)
        self.seconds = 0.0
        """What a guess costs."""

    def guess(self, wanted: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """For slots with the tokens that are in them and the number that is wanted: guesses.
        Nothing for a slot whose tokens are too many to read at once; a part of them is read.
        Nothing either where there are tokens that this vocabulary does not have.
        """
        start = time.perf_counter()
        found: dict[int, list[int]] = {slot: [] for slot in wanted}
        known = {slot: list(tokens) for slot, (tokens, _) in wanted.items()
                 if max(tokens) < self._vocabulary}  # fmt: skip
        rows = self._read(known)
        while rows:
            for slot, row in rows.items():
                found[slot].append(self._best(row))
            rows = self._read(
                {
                    slot: [*self._held[slot], found[slot][-1]]
                    for slot in rows
                    if len(found[slot]) < wanted[slot][1]
                }
            )
        made = sum(map(len, found.values()))
        if made:
            self.seconds += _SMOOTH * ((time.perf_counter() - start) / made - self.seconds)
        return found

    def _read(self, tokens: dict[int, list[int]]) -> dict[int, int]:
        """Reads what is not read yet; returns the row that follows each that is wholly read."""
        rows, answers = self._context.rows, {}
        rows.clear()
        most = room = min(rows.most, AT_ONCE)
        for slot in sorted(tokens):
            known = self._cut(slot, tokens[slot])
            now = tokens[slot][known : known + room]
            if not now:
                continue
            room -= len(now)
            is_whole = known + len(now) == len(tokens[slot])
            row = rows.add(slot, known, now, outputs=int(is_whole))
            self._held[slot] += now
            if is_whole:
                answers[slot] = row
        if room < most:
            self._context.decode()
        return answers

    def _cut(self, slot: int, tokens: list[int]) -> int:
        """Gives up what is not the beginning of these tokens; returns what is left."""
        held = self._held[slot]
        known = common(tokens[:-1], held)
        if known < len(held):
            self._context.trim(slot, known)
            del held[known:]
        return known

    def _best(self, row: int) -> int:
        return int(self._context.logits(row)[: self._vocabulary].argmax())


def open_draft(path: str, target: Model, plan: Plan, *, offload: bool) -> Draft:
    """The model in a file, to guess for another one. Raises ModelError."""
    small = Model(
        path,
        name=path.rpartition("/")[2],
        progress=lambda _: None,
        gpu_layers=-1 if offload else 0,
    )
    small.check_writes()
    return Draft(small, Context(small, plan), target, plan.slots)


def _alike(one: Model, other: Model) -> bool:
    count = min(one.token_count, other.token_count)
    return abs(one.token_count - other.token_count) <= _SPARE and all(
        one.spelled(token) == other.spelled(token)
        for token in range(0, count, max(1, count // _COMPARED))
    )
