"""A process beside the node: how it is started, what it may know, and how much of the machine it
takes.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from subprocess import DEVNULL, PIPE

import psutil
import trio

_KEPT = {"PATH", "HOME", "LANG", "LD_LIBRARY_PATH"}
_KEPT_PREFIXES = ("CUDA_", "HIP_", "ROCR_", "GGML_", "LLAMA_")


def environment(ours: Mapping[str, str], path: list[str]) -> dict[str, str]:
    """What an engine may know of the node's environment: no key, no token.

    It imports from where the node does, however that was installed.
    """
    kept = {
        name: value
        for name, value in ours.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    python_path = os.pathsep.join(entry for entry in path if entry)
    # A failed assertion of ggml would start a debugger for a backtrace, which takes seconds.
    # Grammars are compiled in threads, and glibc would keep memory for each thread there was.
    return kept | {
        "PYTHONPATH": python_path,
        "GGML_NO_BACKTRACE": "1",
        "MALLOC_ARENA_MAX": "1",
    }


async def start(worker: str, *more: socket.socket) -> tuple[trio.Process, trio.SocketStream]:
    """A process of that module, which is given one end of a socket pair, and `more`. All that it
    is given is closed on this side.
    """
    ours, theirs = socket.socketpair()
    given = [str(one.fileno()) for one in (theirs, *more)]
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", worker, *given],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=environment(os.environ, sys.path),
            pass_fds=[int(one) for one in given],
        )
    except BaseException:
        ours.close()
        raise
    finally:
        for one in (theirs, *more):
            one.close()
    ours.setblocking(False)
    return process, trio.SocketStream(trio.socket.from_stdlib_socket(ours))


def threads() -> int:
    """One for each physical core, but always one processor less than there are.

    llama.cpp's threads wait for one another, spinning, some hundred times a token. Where another
    program keeps one of them from running, all of them stand still: with both of two processors
    in use, a token that takes 2 ms took 500 beside a busy neighbour.
    """
    usable = os.cpu_count() or 1
    if sys.platform == "linux":
        usable = len(os.sched_getaffinity(0))
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable - 1))
