"""A link between two workers without their nodes between: TCP, sealed with a key that the nodes
have agreed on over the mesh (specs/activations/README.md).

One way: who dials sends, who listens receives. Each frame is its length as four little-endian
bytes, then AES-256-GCM of the body, whose nonce is the number of the frame. The first frame is
empty: it shows that the key is known.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from meshnode_skippy.link import BUFFER
from meshnode_skippy.wire import MAX_BODY
from p2p_mesh.errors import RemoteError

KEY = 32
"""Bytes of a key."""

PATIENCE = 1.0
"""Seconds for a connection to come about, and for its first frame."""

STUCK = 30.0
"""Seconds in which nothing of a frame goes or comes, after which a link counts as broken."""

_LENGTH, _TAG, _NONCE = 4, 16, 12
_STRANGERS = 8  # connections without the key before a listener gives up


class Sealed:
    """One end of a link that is up."""

    def __init__(self, connection: socket.socket, key: bytes) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        if sys.platform == "linux":  # else what is not acknowledged is sent again for minutes
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STUCK * 1000))
        connection.settimeout(STUCK)
        self._socket = connection
        self._cipher = AESGCM(key)
        self._count = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, parts: Sequence[Any]) -> None:
        """A frame of these parts. Raises OSError where the other end has gone."""
        body = self._cipher.encrypt(self._nonce(), b"".join(parts), None)
        views = [memoryview(len(body).to_bytes(_LENGTH, "little")), memoryview(body)]
        rest = _LENGTH + len(body) - self._socket.sendmsg(views)
        while rest:
            rest -= self._socket.send(memoryview(body)[-rest:])

    def receive(self) -> bytearray:
        """The next frame. Raises EOFError and OSError where the other end has gone, RemoteError
        where it does not know the key.
        """
        length = int.from_bytes(self._read(_LENGTH), "little")
        if not _TAG <= length <= MAX_BODY + _TAG:
            raise RemoteError(f"a sealed frame of {length} bytes; {MAX_BODY} is the limit")
        try:
            return bytearray(self._cipher.decrypt(self._nonce(), self._read(length), None))
        except InvalidTag:
            raise RemoteError("a frame that was sealed with another key") from None

    def greet(self) -> bool:
        """Whether the first frame comes in time, and shows that the other end has the key. It has
        one length, so that a stranger cannot make this wait for more.
        """
        deadline, data = time.perf_counter() + PATIENCE, b""
        try:
            while len(data) < _LENGTH + _TAG:
                self._socket.settimeout(max(0.001, deadline - time.perf_counter()))
                more = self._socket.recv(_LENGTH + _TAG - len(data))
                if not more or time.perf_counter() > deadline:
                    return False
                data += more
            self._cipher.decrypt(self._nonce(), data[_LENGTH:], None)
        except (OSError, InvalidTag):
            return False
        self._socket.settimeout(STUCK)
        return int.from_bytes(data[:_LENGTH], "little") == _TAG

    def close(self) -> None:
        self._socket.close()

    def _nonce(self) -> bytes:
        self._count += 1
        return self._count.to_bytes(_NONCE, "little")

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
            if not count:
                raise EOFError
            view = view[count:]
        return data


class Listener:
    """Waits for the one who has the key, at a port of its own."""

    def __init__(self, key: bytes, host: str = "") -> None:
        """`host`: an address of this machine; empty: all of them. Raises OSError."""
        self._key = key
        self._strangers = 0
        if host:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, 0), family=family)
        elif socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
        else:
            self._socket = socket.create_server(("", 0))

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def is_tired(self) -> bool:
        """So many came without the key that nobody else is let in."""
        return self._strangers >= _STRANGERS

    def accept(self) -> Sealed | None:
        """Whoever is there, if that is the one; anybody else is hung up on."""
        connection, _ = self._socket.accept()
        sealed = Sealed(connection, self._key)
        if sealed.greet():
            return sealed
        self._strangers += 1
        sealed.close()
        return None

    def close(self) -> None:
        self._socket.close()


def dial(hosts: Iterable[str], port: int, key: bytes) -> Sealed | None:
    """A link to whoever listens there; None where it cannot be reached under any address."""
    for host in hosts:
        with suppress(OSError):
            connection = socket.create_connection((host, port), PATIENCE)
            sealed = Sealed(connection, key)
            sealed.send([b""])
            return sealed
    return None
