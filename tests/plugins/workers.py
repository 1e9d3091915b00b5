"""An engine's process, as its node starts it, with a socket to it that the test holds."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meshnode_llama_cpp.frames import Frames


@contextmanager
def worker(module: str) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        try:
            yield ours, process
        finally:
            process.kill()
            process.wait()


def reports(connection: socket.socket, found: Frames[Any]) -> Iterator[Any]:
    while data := connection.recv(65_536):
        yield from found.feed(data)
