"""Where a worker's frames come from and go to: through its node, or straight to and from the
workers beside it in the ring.

A direct link is made while the ring is joined, and used from then on. One that breaks is told to
the node, and what follows goes through the nodes again; what was lost is lost, so the ring is
joined anew, with a newer epoch.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

from meshnode_llama_cpp.frames import encode

from meshnode_skippy.direct import Listener, Sealed, dial
from meshnode_skippy.frames import Dial, Dialled, Listen, Listening, Pong, Unlinked
from meshnode_skippy.link import Bell, Link
from p2p_mesh.errors import RemoteError

LISTENS = 10.0
"""Seconds in which the stage before must dial."""


class Hop:
    """`tell` takes frames for the node."""

    def __init__(self, link: Link, bell: Bell, tell: Callable[[bytes], object]) -> None:
        self._link, self._bell, self._tell = link, bell, tell
        self._out: Sealed | None = None
        self._in: Sealed | None = None
        self._listener: Listener | None = None
        self._listens_until = math.inf
        self._is_broken = False
        """A frame was lost: what comes after it is of no use to anybody."""
        self._poll = select.poll()
        for one in (link, bell):
            self._poll.register(one, select.POLLIN)

    def pong(self) -> None:
        """Tells the node that the worker lives."""
        self._tell(encode(Pong()))

    def listen(self, order: Listen) -> None:
        """The stage before may dial from now on; a link that it had before ends."""
        self._drop_in()
        self._stop_listening()
        try:
            self._listener = Listener(order.key, order.host)
        except OSError:
            self._tell(encode(Listening(0)))
            return
        self._listens_until = time.perf_counter() + LISTENS
        self._poll.register(self._listener, select.POLLIN)
        self._tell(encode(Listening(self._listener.port)))

    def dial(self, order: Dial) -> None:
        """To the next stage; without hosts, it is reached through the node again."""
        if self._out is not None:
            self._out.close()
        self._is_broken = False
        self._out = dial(order.hosts, order.port, order.key)
        self._tell(encode(Dialled(self._out is not None)))

    def send(self, parts: Sequence[Any]) -> None:
        """A frame for the next stage; none, once one was lost, until the next `dial`."""
        if self._is_broken:
            return
        if self._out is None:
            self._link.send(parts)
            return
        try:
            self._out.send(parts)
        except OSError as error:
            self._out.close()
            self._out, self._is_broken = None, True
            self.lost(f"to the next stage: {error}")

    def lost(self, reason: str) -> None:
        """Tells the node that frames were lost."""
        self._tell(encode(Unlinked(reason[:200])))

    def wait(self, seconds: float | None = None) -> list[bytearray]:
        """Frames that came, once there is one, or a command. Raises EOFError when the node has
        closed.
        """
        found: list[bytearray] = []
        if self._listener is not None:
            seconds = min(math.inf if seconds is None else seconds, LISTENS)
            if time.perf_counter() > self._listens_until:
                self._stop_listening()
        for number, _ in self._poll.poll(None if seconds is None else seconds * 1000):
            if number == self._link.fileno():
                found.append(self._link.receive())
            elif number == self._bell.fileno():
                self._bell.silence()
            elif self._in is not None and number == self._in.fileno():
                found += self._direct(self._in)
            elif self._listener is not None and number == self._listener.fileno():
                self._accept(self._listener)
        return found

    def close(self) -> None:
        """Ends the direct links."""
        self._drop_in()
        self._stop_listening()
        if self._out is not None:
            self._out.close()
            self._out = None

    def _direct(self, link: Sealed) -> list[bytearray]:
        try:
            return [link.receive()]
        except (OSError, EOFError, RemoteError) as error:
            self._drop_in()
            self.lost(f"from the stage before: {error}")
            return []

    def _accept(self, listener: Listener) -> None:
        found = listener.accept()
        if found is not None:
            self._drop_in()
            self._in = found
            self._poll.register(found, select.POLLIN)
        if found is not None or listener.is_tired:
            self._stop_listening()

    def _drop_in(self) -> None:
        if self._in is not None:
            self._poll.unregister(self._in)
            self._in.close()
            self._in = None

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._poll.unregister(self._listener)
            self._listener.close()
            self._listener = None
