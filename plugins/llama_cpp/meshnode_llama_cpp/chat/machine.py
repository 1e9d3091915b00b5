"""What the parsers of all families are: machines over text that is held until it is certain.

A machine is in one state, a method that takes what it can from the held text and says whether it
got further. A state decides only what no text that follows could change, so where the pieces of an
answer are cut changes nothing. Text that was taken for a call and is none is content after all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshnode_llama_cpp.chat.scan import Markers, markers
from p2p_mesh.core.records import CallDelta

State = Callable[[], bool]

MAX_CALLS = 1024
"""As CallDelta.index has it; an answer with more of them ends."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What an answer grew by."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


class Parser(Protocol):
    """Reads one answer."""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as one can tell."""
        ...

    @property
    def done(self) -> bool:
        """A complete set of calls was made: the answer can end. What follows is not read."""
        ...

    def push(self, text: str) -> Grown: ...

    def finish(self) -> Grown:
        """What was held back, now that nothing follows."""
        ...


class Machine:
    """Holds the text; a family's parser gives the states."""

    def __init__(self, *, single: bool) -> None:
        """`single`: the answer ends with the first call."""
        self.done = False
        self._single = single
        self._held = ""
        self._ended = False
        self._state: State = self._stopped
        self._watched: Markers | None = None
        """What the state looks for, if all else is content or reasoning."""
        self._thinks = False
        self._text: list[str] = []
        self._thought: list[str] = []
        self._calls: list[CallDelta] = []
        self._made = 0
        self._trimmed = ""
        """The space before the last marker, where that is no content."""

    @property
    def reasoning(self) -> bool:
        return self._thinks

    def push(self, text: str) -> Grown:
        if (
            not self._held
            and self._watched is not None
            and not text[-1:].isspace()
            and not self._watched.may_begin(text)
        ):
            return Grown(reasoning=text) if self._thinks else Grown(text=text)
        self._held += text
        return self._run()

    def finish(self) -> Grown:
        self._ended = True
        return self._run()

    def _run(self) -> Grown:
        while self._held and self._state():
            pass
        grown = Grown("".join(self._text), "".join(self._thought), tuple(self._calls))
        self._text, self._thought, self._calls = [], [], []
        return grown

    def _enter(self, state: State, *, thinks: bool = False, watched: Markers | None = None) -> bool:
        """The next state; always further."""
        self._state, self._thinks, self._watched = state, thinks, watched
        return True

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _give(self, text: str) -> None:
        (self._thought if self._thinks else self._text).append(text)

    def _stopped(self) -> bool:
        self._held = ""
        return False

    def _stop(self) -> bool:
        self.done = True
        return self._enter(self._stopped)

    def _flow(self, watched: Markers, *, trims: bool = False) -> str:
        """Gives what comes before the first marker, and takes that; "" while there is none.
        `trims`: without the space before the marker.
        """
        found = watched.find(self._held)
        if found is not None:
            before = self._take(found.start())
            given = before.rstrip() if trims else before
            self._trimmed = before[len(given) :]
            self._give(given)
            return self._take(len(found[0]))
        sure = len(self._held)
        if not self._ended:
            sure -= watched.doubtful(self._held)
            sure = len(self._held[:sure].rstrip()) if trims else sure
        self._give(self._take(sure))
        return ""

    def _next(self, *tokens: str) -> str | None:
        """Which of them the held text begins with, and takes it; "" if none; None while one may
        still come.
        """
        for token in tokens:
            if self._held.startswith(token):
                return self._take(len(token))
        if not self._ended and any(token.startswith(self._held) for token in tokens):
            return None
        return ""

    def _call(self, name: str) -> None:
        self._calls.append(CallDelta(index=self._made, name=name))
        self._made += 1

    def _argue(self, arguments: str) -> None:
        if arguments:
            self._calls.append(CallDelta(index=self._made - 1, arguments=arguments))


class Plain(Machine):
    """An answer in which all is content."""

    def __init__(self) -> None:
        super().__init__(single=False)
        self._enter(self._flowing, watched=markers())

    def _flowing(self) -> bool:
        self._give(self._take(len(self._held)))
        return False
