"""The answers that are being written, and the step by which all of them grow.

Each step seats those who wait, feeds what batching.py chose, and draws one token for every
sequence whose tokens have all been read. A sequence holds one slot of the KV memory until its
answer ends or is cancelled; no prefix is reused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from meshnode_llama_cpp.batching import Limits, shares
from meshnode_llama_cpp.context import Context, Sampler
from meshnode_llama_cpp.frames import Answer
from meshnode_llama_cpp.model import Model
from meshnode_llama_cpp.text import Text
from p2p_mesh.core.records import Delta, Finish, Sampling, Usage


@dataclass(frozen=True, slots=True)
class Task:
    """An answer to write."""

    number: int
    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...]
    most: int
    """Tokens of the answer, at least one; prompt and answer fit the context."""


class _Sequence:
    def __init__(self, task: Task, slot: int, sampler: Sampler) -> None:
        self.task, self.slot, self.sampler = task, slot, sampler
        self.text = Text(task.stops)
        self.waiting = task.prompt
        self.position = 0
        """Of the next token that is fed; what is before is in the KV memory."""
        self.made = 0


class Decoder:
    def __init__(self, model: Model, context: Context, *, slots: int, limits: Limits) -> None:
        self._model, self._context, self._limits = model, context, limits
        self._free = list(range(slots))
        self._queue: deque[Task] = deque()
        self._live: list[_Sequence] = []

    @property
    def idle(self) -> bool:
        return not self._live and not self._queue

    def add(self, task: Task) -> None:
        self._queue.append(task)

    def cancel(self, number: int) -> None:
        """Harmless for an answer that has ended."""
        self._queue = deque(task for task in self._queue if task.number != number)
        for sequence in [live for live in self._live if live.task.number == number]:
            self._end(sequence)

    def step(self) -> list[Answer]:
        """One call of llama.cpp, and what came of it."""
        while self._queue and self._free:
            task = self._queue.popleft()
            sampler = Sampler(self._context, task.sampling, task.prompt)
            self._live.append(_Sequence(task, self._free.pop(), sampler))
        answered = self._feed()
        self._context.decode()
        return [self._grow(sequence, row) for sequence, row in answered]

    def _feed(self) -> list[tuple[_Sequence, int]]:
        """Fills the rows; returns whose last row is answered, and which it is."""
        rows = self._context.rows
        rows.clear()
        answered = []
        counts = shares([len(sequence.waiting) for sequence in self._live], self._limits)
        for sequence, count in zip(self._live, counts, strict=True):
            if not count:
                continue
            now, sequence.waiting = sequence.waiting[:count], sequence.waiting[count:]
            row = rows.add(sequence.slot, sequence.position, now, output=not sequence.waiting)
            sequence.position += count
            if not sequence.waiting:
                answered.append((sequence, row))
        return answered

    def _grow(self, sequence: _Sequence, row: int) -> Answer:
        token = sequence.sampler.sample(row, sequence.made)
        sequence.made += 1
        sequence.waiting = [token]
        ends = self._model.ends(token)
        text = "" if ends else sequence.text.push(self._model.piece(token))
        finish: Finish | None = None
        if ends or sequence.text.stopped:
            finish = "stop"
        elif sequence.made >= sequence.task.most:
            finish = "length"
        usage = None
        if finish is not None:
            text, finish, usage = self._conclude(sequence, text, finish)
        delta = Delta(tokens=(token,), text=text, finish=finish, usage=usage)
        return Answer(sequence.task.number, delta)

    def _conclude(
        self, sequence: _Sequence, text: str, finish: Finish
    ) -> tuple[str, Finish, Usage]:
        """What an answer ends with. Flushing may complete a stop string: one that ends in a
        replacement character.
        """
        text += sequence.text.finish()
        self._end(sequence)
        usage = Usage(prompt_tokens=len(sequence.task.prompt), completion_tokens=sequence.made)
        return text, "stop" if sequence.text.stopped else finish, usage

    def _end(self, sequence: _Sequence) -> None:
        self._live.remove(sequence)
        self._context.forget(sequence.slot)
        self._free.append(sequence.slot)
        sequence.sampler.free()
