"""The stages of a model as one thing that computes: the first stage's view of the ring.

Each call becomes a batch: what is to be done to the memory first, rows, and what is drawn from
them. The first stage computes its part at once; the rest comes back as a result. All stages see all
batches in one order, so their memories agree without a word.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from meshnode_llama_cpp.drawing import Fed, Start
from meshnode_llama_cpp.prefixes import Rules
from meshnode_llama_cpp.steps import Result as Come

from meshnode_skippy.batches import Batches
from meshnode_skippy.wire import Batch, Order, Orders, Result
from p2p_mesh.errors import RemoteError, RequestError

if TYPE_CHECKING:
    from meshnode_llama_cpp.grammar import Matcher
    from meshnode_llama_cpp.media import Medium, Projector  # its import maps libmtmd

MOST_FLIGHTS = 64

STUCK = 60.0
"""Seconds after which a batch that did not come around is taken for lost; or twenty times what one
usually takes, where that is more.
"""

_SMOOTH = 0.2


class Filling:
    """The rows of the next batch."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.slots, self.positions = np.zeros(most, np.int32), np.zeros(most, np.int32)
        self.tokens, self.outputs = np.zeros(most, np.int32), np.zeros(most, np.int8)

    def clear(self) -> None:
        self.count = 0

    def add(self, slot: int, position: int, tokens: list[int], *, outputs: int) -> int:
        start, end = self.count, self.count + len(tokens)
        self.slots[start:end] = slot
        self.positions[start:end] = np.arange(position, position + len(tokens))
        self.tokens[start:end] = tokens
        self.outputs[start:end] = 0
        self.outputs[end - outputs : end] = 1
        self.count = end
        return end - outputs

    def batch(self, epoch: int, number: int) -> Batch:
        made = Batch(epoch, number, 0)
        made.slots, made.positions = self.slots[: self.count], self.positions[: self.count]
        made.tokens, made.outputs = self.tokens[: self.count], self.outputs[: self.count]
        return made


@dataclass(frozen=True, slots=True)
class Saved:
    """What all stages keep of a sequence under one number."""

    number: int
    size: int

    def __len__(self) -> int:
        return self.size


class Recorder:
    """The memory of all stages: what is done to it goes with the next batch. `size`: bytes that
    all stages together would keep of a slot.
    """

    def __init__(self, rules: Rules, size: Callable[[int], int]) -> None:
        self.rules, self._size = rules, size
        self._orders: list[Order] = []
        self._count = 0

    def forget(self, slot: int) -> None:
        self._orders.append(("forget", slot, 0))

    def trim(self, slot: int, position: int) -> None:
        self._orders.append(("trim", slot, position))

    def copy(self, source: int, slot: int) -> None:
        self._orders.append(("copy", source, slot))

    def state_size(self, slot: int) -> int:
        return self._size(slot)

    def save(self, slot: int) -> Saved:
        self._count += 1
        self._orders.append(("save", slot, self._count))
        return Saved(self._count, self._size(slot))

    def restore(self, slot: int, state: Saved) -> None:
        self._orders.append(("restore", slot, state.number))

    def drop(self, state: Saved) -> None:
        self._orders.append(("drop", 0, state.number))

    def taken(self) -> tuple[Order, ...]:
        orders, self._orders = tuple(self._orders), []
        return orders


@dataclass(frozen=True, slots=True)
class _Flight:
    number: int
    fed: tuple[Fed, ...]
    writing: int
    """Sequences that write in it; 0 where prompts are read beside."""
    sent: float
    is_first: bool
    """Nothing was in flight before it."""


class Ring:
    """Steps of a decoder. `compute` does the first stage's part of a batch and sends it on."""

    def __init__(
        self,
        compute: Callable[[Batch], None],
        *,
        stages: int,
        rules: Rules,
        rows: int,
        outputs: int,
        vocabulary: int,
        state_size: Callable[[int], int],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._compute, self._clock = compute, clock
        self._stages, self._vocabulary = stages, vocabulary
        self.memory, self.rows = Recorder(rules, state_size), Filling(rows)
        self.outputs = outputs
        self._begins: dict[int, Start] = {}
        self._ends: set[int] = set()
        self._flights: deque[_Flight] = deque()
        self._come: list[Come] = []
        self._batches = Batches()
        self._writing = 0
        self._around = self._own = self._transit = 0.0
        """Seconds: of a batch around the ring, in the first stage, and between stages."""
        self.number = 0
        """Of the last batch."""
        self._epoch = 0
        """0: the ring is not up yet."""

    def restart(self, epoch: int) -> None:
        """The ring is up anew. Whoever has sequences begins them again."""
        self._epoch = epoch
        self._flights.clear()
        self._come.clear()
        self._begins.clear()
        self._ends.clear()
        self.memory.taken()

    @property
    def is_flying(self) -> bool:
        return bool(self._flights)

    @property
    def delay(self) -> float:
        return self._transit

    @property
    def has_room(self) -> bool:
        room = max(self._stages + 1, self._batches.flights(self._writing) + 1)
        if self._own:
            room = max(room, ceil(self._around / self._own) + 1)
        return bool(self._epoch) and len(self._flights) < min(room, MOST_FLIGHTS)

    def together(self, writing: int) -> int:
        self._writing = writing
        return self._batches.together(writing) if writing else 0

    def begin(self, start: Start, matcher: Matcher | None = None) -> None:
        self._ends.discard(start.slot)
        self._begins[start.slot] = start

    def end(self, slot: int) -> None:
        if self._begins.pop(slot, None) is None:
            self._ends.add(slot)

    def look(self, projector: Projector, medium: Medium, *, slot: int, position: int) -> int:
        raise RequestError("a model in stages takes no images and no sounds", param="messages")

    def submit(self, fed: Sequence[Fed], *, writing: int) -> None:
        self.number += 1
        batch = self.rows.batch(self._epoch, self.number)
        batch.orders = Orders(
            self.memory.taken(), tuple(self._ends), tuple(self._begins.values()), tuple(fed)
        )
        self._begins.clear()
        self._ends.clear()
        guessed = sum(len(one.guesses) for one in fed)
        reads = len(batch.slots) - guessed > writing
        is_first = not self._flights
        self._flights.append(
            _Flight(self.number, tuple(fed), 0 if reads else writing, self._clock(), is_first)
        )
        self._compute(batch)
        self._own += _SMOOTH * (batch.total - self._own)

    def hear(self, result: Result) -> None:
        """A result came around. One of an earlier epoch is nobody's any more."""
        if result.epoch != self._epoch or not self._flights:
            return
        if self._flights[0].number != result.number or not self._answers(result):
            self.lose()
            raise RemoteError(f"result {result.number} is not what was asked for")
        flight = self._flights.popleft()
        around = self._clock() - flight.sent
        self._around += _SMOOTH * (around - self._around)
        if flight.is_first:
            self._transit += _SMOOTH * (around - result.total - self._transit)
        if flight.writing:
            alone = result.total + self._transit
            self._batches.observe(flight.writing, slowest=result.slowest, around=alone)
        # Without what it waited for the batches before it, which is no cost of its rows.
        self._come.append(Come(result.drawn, result.total + self._transit))

    def lose(self) -> None:
        """Something was lost on the way: nothing can be made of what comes before a restart."""
        self._epoch = 0

    def is_stuck(self) -> bool:
        """Whether a batch is gone for longer than any takes."""
        if not (self._epoch and self._flights):
            return False
        return self._clock() - self._flights[0].sent > max(STUCK, 20 * self._around)

    def _answers(self, result: Result) -> bool:
        """Whether it has what the oldest batch asked for: a last stage may say anything."""
        fed = self._flights[0].fed
        return len(fed) == len(result.drawn) and all(
            one.slot == asked.slot
            and len(one.tokens) <= (len(asked.guesses) + 1 if asked.draws else 0)
            and (bool(one.tokens) or not asked.draws or bool(one.failure))
            and len(one.logprobs) in (0, len(one.tokens))
            and len(one.scores) <= len(asked.targets)
            and all(
                0 <= token < self._vocabulary
                for token in (*one.tokens, *(score.token for score in one.scores))
            )
            for asked, one in zip(fed, result.drawn, strict=True)
        )

    def results(self) -> list[Come]:
        found, self._come = self._come, []
        return found
