"""One stage's part of a batch: obey its orders, compute its layers, and in the last stage draw."""

from __future__ import annotations

import time

import numpy as np
from meshnode_llama_cpp.drawing import Drawing, Drawn, Fed
from meshnode_llama_cpp.memory import SNAPSHOTS
from numpy.typing import NDArray

from meshnode_skippy.compute import StageContext
from meshnode_skippy.embeddings import Embeddings
from meshnode_skippy.wire import Batch, Order
from p2p_mesh.errors import RemoteError, RequestError

_MOST_SAVED = 4096


class Stage:
    """`embeddings`: of a first stage that is fed rows; `drawing`: of the last one."""

    def __init__(
        self,
        context: StageContext,
        *,
        slots: int,
        length: int,
        embeddings: Embeddings | None = None,
        drawing: Drawing | None = None,
    ) -> None:
        self._context, self._slots, self._length = context, slots, length
        self._embeddings, self._drawing = embeddings, drawing
        self._failed: dict[int, str] = {}
        self._saved: dict[int, bytes] = {}
        self._epoch = 0

    def state_size(self, slot: int) -> int:
        """Bytes that this stage would keep of a slot."""
        return self._context.state_size(slot)

    def restart(self, epoch: int) -> None:
        """The ring is up anew: nothing is in the memory."""
        self._epoch = epoch
        self._context.clear()
        self._failed.clear()
        self._saved.clear()
        for slot in range(self._slots):
            self._end(slot)

    def compute(self, batch: Batch) -> bool:
        """Its layers, for rows of this epoch or a newer one; `batch` then has what goes on.
        False for a batch that is nobody's any more.
        """
        if batch.epoch < self._epoch:
            return False
        if batch.epoch > self._epoch:
            self.restart(batch.epoch)
        begun = time.perf_counter()
        for order in batch.orders.memory:
            self._obey(order)
        given = self._embeddings.rows(batch.tokens) if self._embeddings else batch.given
        batch.given = self._context.run(
            batch.slots, batch.positions, batch.tokens, batch.outputs, given
        )
        batch.timed(time.perf_counter() - begun)
        return True

    def draw(self, batch: Batch) -> list[Drawn]:
        """What comes of a batch that was computed."""
        assert self._drawing is not None
        for slot in batch.orders.ends:
            self._end(slot)
        for start in batch.orders.begins:
            self._failed.pop(start.slot, None)
            try:
                self._drawing.begin(start)
            except RequestError as error:
                self._failed[start.slot] = str(error)
        return [self._draw(fed) for fed in batch.orders.fed]

    def check(self, batch: Batch) -> None:
        """Raises RemoteError for rows that this stage has no place for: llama.cpp would abort."""
        rows = len(batch.slots)
        if (
            rows > self._context.rows.most
            or not _within(batch.slots, self._slots)
            or not _within(batch.positions, self._length)
            or not _within(batch.tokens, 2**31 - 1)
        ):
            raise RemoteError("the stage before sent rows that this one has no place for")
        saved = set(self._saved) if batch.epoch == self._epoch else set[int]()
        for order in batch.orders.memory:
            if not self._is_possible(order, saved):
                raise RemoteError(f"the stage before ordered {order}")
        slots = [*batch.orders.ends, *(one.slot for one in batch.orders.begins)]
        if len(slots) > 2 * self._slots or not all(0 <= one < self._slots for one in slots):
            raise RemoteError("the stage before begins what there is no slot for")
        for fed in batch.orders.fed:
            answered = max(int(fed.draws), len(fed.targets)) + len(fed.guesses)
            if not (fed.row >= 0 and fed.row + answered <= rows and 0 <= fed.slot < self._slots):
                raise RemoteError("the stage before asks for rows that are not there")

    def _is_possible(self, order: Order, saved: set[int]) -> bool:
        """`saved`: the numbers that are known when it is obeyed."""
        name, slot, other = order
        if not 0 <= slot < self._slots:
            return False
        match name:
            case "trim":
                return 0 <= other <= self._length
            case "copy":
                return 0 <= other < self._slots
            case "save":
                saved.add(other)
                return len(saved) <= _MOST_SAVED
            case "drop":
                known = other in saved
                saved.discard(other)
                return known
            case "restore":
                return other in saved
        return True

    def _draw(self, fed: Fed) -> Drawn:
        if not fed.draws and not fed.targets:
            return Drawn(fed.slot)
        if failure := self._failed.get(fed.slot):
            return Drawn(fed.slot, failure=failure)
        assert self._drawing is not None
        return self._drawing.draw(fed)

    def _end(self, slot: int) -> None:
        self._failed.pop(slot, None)
        if self._drawing is not None:
            self._drawing.end(slot)

    def _obey(self, order: Order) -> None:
        match order:
            case ("forget", slot, _):
                self._context.forget(slot)
            case ("trim", slot, position):
                self._context.trim(slot, position)
            case ("copy", source, slot):
                self._context.copy(source, slot)
            case ("save", slot, number):
                self._save(slot, number)
            case ("restore", slot, number):
                self._context.restore(slot, self._saved[number])
            case ("drop", _, number):
                del self._saved[number]

    def _save(self, slot: int, number: int) -> None:
        self._saved[number] = self._context.save(slot)
        if sum(map(len, self._saved.values())) > 2 * SNAPSHOTS:
            raise RemoteError("the first stage wants more snapshots kept than a stage keeps")


def _within(numbers: NDArray[np.int32], end: int) -> bool:
    return bool(numbers.min() >= 0 and numbers.max() < end)
