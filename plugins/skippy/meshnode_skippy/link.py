"""The worker's end of the ring: frames with a length in front, on a socket of its node."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from meshnode_skippy.wire import MAX_BODY
from p2p_mesh.errors import RemoteError

BUFFER = 8 << 20
"""Bytes that are asked for on either side, so that a stage seldom waits for its node."""
_LENGTH = 4


class Link:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        connection.setblocking(True)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        self._head = bytearray(_LENGTH)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, parts: Sequence[Any]) -> None:
        """A frame of these parts; waits until the socket has taken it."""
        views = [memoryview(part).cast("B") for part in parts]
        length = sum(map(len, views))
        if length > MAX_BODY:
            raise ValueError(f"a frame of {length} bytes; {MAX_BODY} is the limit")
        views.insert(0, memoryview(length.to_bytes(_LENGTH, "little")))
        while views:
            sent = self._socket.sendmsg(views)
            while views and sent >= len(views[0]):
                sent -= len(views.pop(0))
            if sent:
                views[0] = views[0][sent:]

    def receive(self) -> bytearray:
        """The next frame; waits for it. Raises EOFError when the node has closed."""
        self._fill(memoryview(self._head))
        length = int.from_bytes(self._head, "little")
        if length > MAX_BODY:
            raise RemoteError(f"a frame of {length} bytes; {MAX_BODY} is the limit")
        body = bytearray(length)
        self._fill(memoryview(body))
        return body

    def waiting(self) -> Iterator[bytearray]:
        """The frames that have begun to come."""
        while select.select([self._socket], [], [], 0)[0]:
            yield self.receive()

    def close(self) -> None:
        self._socket.close()

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
            if not count:
                raise EOFError
            view = view[count:]


class Bell:
    """Wakes who waits for several things at once: rung by the thread that reads commands."""

    def __init__(self) -> None:
        self._heard, self._struck = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._struck, False)

    def fileno(self) -> int:
        return self._heard

    def ring(self) -> None:
        try:
            os.write(self._struck, b"!")
        except BlockingIOError:
            return  # it is ringing already

    def silence(self) -> None:
        try:
            os.read(self._heard, 65_536)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self._heard)
        os.close(self._struck)
