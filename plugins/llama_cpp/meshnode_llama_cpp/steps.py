"""Where the rows of a decoder are computed, and what comes back.

A decoder fills the rows of a call, hands them over with `submit`, and takes from `results` what
came of them: at once where the whole model is in this process, later where other stages have a
part of it. Results come in the order in which calls were submitted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from meshnode_llama_cpp.context import Context
from meshnode_llama_cpp.drawing import Drawing, Drawn, Fed, Start
from meshnode_llama_cpp.grammar import Matcher
from meshnode_llama_cpp.prefixes import Rules

if TYPE_CHECKING:
    from meshnode_llama_cpp.media import Medium, Projector  # its import maps libmtmd


class Filling(Protocol):
    """The rows of the next call."""

    def clear(self) -> None: ...

    def add(self, slot: int, position: int, tokens: list[int], *, outputs: int) -> int:
        """Rows of one sequence, of which the last `outputs` are answered; returns the first of
        those. Slots come in rising order.
        """
        ...


class Memory(Protocol):
    """The KV cache of all sequences. What is told to it is done before the next call."""

    @property
    def rules(self) -> Rules: ...

    def forget(self, slot: int) -> None: ...

    def trim(self, slot: int, position: int) -> None: ...

    def copy(self, source: int, slot: int) -> None: ...

    def state_size(self, slot: int) -> int: ...

    def save(self, slot: int) -> Sized:
        """All that a sequence holds; its length is in bytes."""
        ...

    def restore(self, slot: int, state: Any) -> None:
        """Gives a sequence what `save` had from one."""
        ...

    def drop(self, state: Any) -> None:
        """Nobody will want that state any more."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a call: something for each sequence that was fed."""

    drawn: Sequence[Drawn]
    seconds: float


class Steps(Protocol):
    """Computes calls, in the order in which they are submitted."""

    @property
    def memory(self) -> Memory: ...

    @property
    def rows(self) -> Filling: ...

    @property
    def outputs(self) -> int:
        """Rows of one call that can be answered."""
        ...

    @property
    def delay(self) -> float:
        """Seconds of a call in which nothing is computed, however many rows it has."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another call may be submitted before a result has come."""
        ...

    def together(self, writing: int) -> int:
        """How many of so many sequences that write go best into one call."""
        ...

    def begin(self, start: Start, matcher: Matcher | None) -> None:
        """A sequence has its slot. `matcher` is that of its grammar, if it has one; whoever draws
        elsewhere makes one of its own. Raises RequestError for a grammar that cannot be.
        """
        ...

    def end(self, slot: int) -> None: ...

    def look(self, projector: Projector, medium: Medium, *, slot: int, position: int) -> int:
        """Feeds an image or a sound at once; returns the position after it."""
        ...

    def submit(self, fed: Sequence[Fed], *, writing: int) -> None:
        """Computes the rows. `writing`: how many sequences write; the others read."""
        ...

    def results(self) -> list[Result]:
        """Those that are there now, each once."""
        ...


class Here:
    """All of it in this process, and at once."""

    has_room, delay = True, 0.0

    def __init__(self, context: Context, drawing: Drawing) -> None:
        self._context, self._drawing = context, drawing
        self._results: list[Result] = []
        self.memory, self.rows, self.outputs = context, context.rows, context.outputs
        self.begin, self.end = drawing.begin, drawing.end

    def together(self, writing: int) -> int:
        return writing

    def look(self, projector: Projector, medium: Medium, *, slot: int, position: int) -> int:
        rows = self.rows.most
        return projector.feed(medium, self._context.handle, slot=slot, position=position, rows=rows)

    def submit(self, fed: Sequence[Fed], *, writing: int) -> None:
        start = time.perf_counter()
        self._context.decode()
        seconds = time.perf_counter() - start
        self._results.append(Result([self._drawing.draw(one) for one in fed], seconds))

    def results(self) -> list[Result]:
        found, self._results = self._results, []
        return found
