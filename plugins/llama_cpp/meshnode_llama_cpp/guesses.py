"""Which tokens are guessed for the sequences of the next call, and how many: by what a sequence has
written before, else by a draft model; as many as pay (speculation.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Listing

from meshnode_llama_cpp.draft import Draft
from meshnode_llama_cpp.scheduler import Pace
from meshnode_llama_cpp.sequence import Sequence
from meshnode_llama_cpp.speculation import DRAFTED, MOST, Hope, Lookup


class Guesses:
    """`context_length`: tokens of one sequence."""

    def __init__(self, *, context_length: int, looks_up: bool, draft: Draft | None) -> None:
        self._length = context_length
        self._looks_up = looks_up
        self._draft = draft

    @property
    def are_made(self) -> bool:
        return self._looks_up or self._draft is not None

    def begin(self, sequence: Sequence) -> None:
        if self._looks_up:
            sequence.lookup = Lookup([key for key in sequence.keys if key >= 0])
        if self._draft is not None:
            sequence.hope = Hope(DRAFTED)

    def make(self, writing: Listing[Sequence], outputs: int, pace: Pace) -> None:
        """For those that write, which share so many outputs."""
        room = outputs // len(writing)
        wanted: dict[int, tuple[list[int], int]] = {}
        for sequence in writing:
            most = min(room, MOST, self._room(sequence))
            sequence.guesses = sequence.lookup.guess(most) if sequence.lookup else []
            if sequence.guesses or self._draft is None:
                count = sequence.hope.count(len(sequence.guesses), len(writing), pace)
                del sequence.guesses[count:]
            elif not sequence.task.media:
                count = sequence.hope.count(most, len(writing), pace, each=self._draft.seconds)
                if count:
                    wanted[sequence.slot] = sequence.keys, count
        if self._draft is not None and wanted:
            guesses = self._draft.guess(wanted)
            for sequence in writing:
                sequence.guesses = guesses.get(sequence.slot, sequence.guesses)

    def _room(self, sequence: Sequence) -> int:
        """How many tokens may follow the next one."""
        left = sequence.task.most - len(sequence.choice.tokens) - 1
        return max(0, min(left, self._length - len(sequence.keys) - 1))


def judge(sequence: Sequence, guessed: int, right: int) -> None:
    """Of so many guesses the first so many were right."""
    sequence.hope.observe(guessed, right)
    sequence.task.drafted += guessed
    sequence.task.accepted += right
