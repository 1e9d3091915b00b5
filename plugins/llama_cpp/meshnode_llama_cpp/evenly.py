"""When the node is told what was computed: at once, but for answers beside which a long prompt is
read. Their steps take nearly twice as long as usual, and what else a machine does may make one of
them take twice as long again. So what came of them is held back a little: each is told GAP steps
after the one before, until they lag by LAG steps, or MOST seconds. A step that takes longer by no
more than that then makes no longer gap.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Protocol

GAP, LAG = 1.06, 3.0
MOST = 0.25
_SMOOTH, _OUTLIER = 0.02, 2.0


class Evenly:
    """How long what came of the last step is held back. Pure."""

    def __init__(self) -> None:
        self.hold = 0.0
        """Seconds."""
        self._ended = self._told = 0.0
        """When the last step ended, and when it was told; 0: there was none."""
        self._step = 0.0
        """Seconds of a step, on average."""
        self._count = 0
        """Steps that were measured, since there is a prompt beside."""

    def observe(self, now: float, *, is_beside: bool) -> None:
        """A step has ended. `is_beside`: a prompt is read beside those who write."""
        due = now
        if is_beside and self._ended:
            self._learn(now - self._ended)
            lag = min(LAG * self._step, MOST)
            due = min(now + lag, self._told + GAP * self._step)
            due = max(due, self._told, now)
        else:
            self._count = 0
        self.hold, self._told, self._ended = due - now, due, now

    def _learn(self, seconds: float) -> None:
        self._count += 1
        if self._count == 1:
            self._step = seconds
        more = min(seconds, _OUTLIER * self._step) - self._step
        self._step += max(_SMOOTH, 1 / self._count) * more


class Connection(Protocol):
    def sendall(self, data: bytes, /) -> None: ...


class Outlet:
    """Sends in order, from any thread. What comes takes with it all that was held back before: only
    few frames ever are.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._turn = threading.Condition()
        self._held: deque[tuple[float, bytes]] = deque()
        self._thread: threading.Thread | None = None

    def send(self, data: bytes, hold: float = 0.0) -> None:
        """`hold`: seconds. Raises OSError where the node has gone."""
        with self._turn:
            if hold > 0:
                self._keep(data, hold)
                return
            held = b"".join(one for _, one in self._held)
            self._held.clear()
            self._connection.sendall(held + data)

    def _keep(self, data: bytes, hold: float) -> None:
        self._held.append((time.perf_counter() + hold, data))
        self._turn.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._release, daemon=True)
            self._thread.start()

    def _release(self) -> None:
        with suppress(OSError), self._turn:  # the node has gone: whoever reads from it sees to that
            while True:
                left = self._held[0][0] - time.perf_counter() if self._held else None
                if left is None or left > 0:
                    self._turn.wait(left)
                else:
                    self._connection.sendall(self._held.popleft()[1])
