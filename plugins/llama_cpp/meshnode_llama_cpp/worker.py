"""The engine process: `python -P -m meshnode_llama_cpp.worker FD`.

Theory of operation:

1. A thread reads commands. It ends the process at once when the node says so or is gone (the
   connection ends), also while a model loads or a step computes: llama.cpp lets go of the
   interpreter then, and there is nothing to save.
2. The main thread loads the model, then takes the commands that are there, computes one step over
   all answers and sends what came of it. Where there is nothing to compute it waits.
3. A model that cannot be served is told to the node in words (`Failed`). What goes wrong in
   llama.cpp itself ends the process; the node finds the reason in the last line of stderr.
"""

from __future__ import annotations

import gc
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from msgspec import Struct

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.evenly import Outlet
from meshnode_llama_cpp.library import Device, devices, start
from meshnode_llama_cpp.served import Asked, Served, open_model
from p2p_mesh.errors import MeshError, RequestError

PATIENCE = 0.01
"""Seconds for questions between two steps: each costs a template and a tokenizer, and the answers
that run wait for those.
"""
_SLACK = 2**30
"""Of data, beyond the memory limit: Python's, and what an estimate misses."""
_STACK = 16 * 2**20  # and what else comes with a thread
_OPEN_FILES = 1024


def main(descriptor: int) -> None:
    connection = socket.socket(fileno=descriptor)
    inbox = attend(connection, frames.commands())
    command = inbox.take()
    assert isinstance(command, frames.Open)
    serve(command, connection, lambda served: Worker(served, connection, inbox))


def serve(
    command: frames.Open,
    connection: socket.socket,
    worker: Callable[[Any], Worker],
    opened: Callable[..., Served] = open_model,
) -> None:
    """Opens a model and answers, for ever: the process ends with the connection."""
    start()
    accelerators = devices()
    limit_memory(command.memory_limit, command.threads, accelerators)
    try:
        served = opened(command, accelerators, lambda share: tell(connection, share))
    except MeshError as error:
        connection.sendall(frames.encode(frames.Failed(str(error))))
        return
    device = ", ".join(one.name for one in accelerators) or "cpu"
    ready = frames.Ready(served.numerics(device), device, served.capabilities, served.notes)
    connection.sendall(frames.encode(ready))
    working = worker(served)
    gc.freeze()  # what was made until now stays: the collector need not look it through again
    while True:
        working.turn()


def attend(
    connection: socket.socket,
    records: frames.Frames[Any],
    heard: Callable[[], None] = lambda: None,
) -> Inbox:
    """How every worker begins: limited, deaf to ctrl-C, which reaches the whole group (whoever
    started it decides), and with a thread that reads commands.
    """
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox = Inbox(connection, records, heard)
    threading.Thread(target=inbox.read, daemon=True).start()
    return inbox


def limit(kind: int, most: int) -> None:
    """Lowers a limit of this process for good."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def limit_memory(most: int | None, threads: int, accelerators: Sequence[Device]) -> None:
    """Holds the process to a limit of bytes, and what threads need."""
    if most is not None and not accelerators:
        limit(resource.RLIMIT_DATA, most + _SLACK + threads * _STACK)


def tell(connection: socket.socket, share: float) -> None:
    """How far a model is loaded."""
    connection.sendall(frames.encode(frames.Progress(share)))


class Inbox:
    """The commands of the node, read as they come. `heard` is called after each, by the thread
    that reads.
    """

    def __init__(
        self,
        connection: socket.socket,
        records: frames.Frames[Any],
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection, self._records, self._heard = connection, records, heard
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._held: list[Any] = []

    @property
    def is_empty(self) -> bool:
        """Nothing is to be obeyed now."""
        return not self._held and self._commands.empty()

    def read(self) -> None:
        """Reads for ever: returns never, and ends the process instead."""
        try:
            self._read()
        except ConnectionError:
            os._exit(0)
        except BaseException as error:  # noqa: BLE001  without this thread nobody would end us
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)

    def take(self) -> Any:
        return self._commands.get()

    def batch(self, *, wait: bool) -> list[Any]:
        """What to obey next, at least one command if we are to wait: every cancellation, and the
        first question that was not cancelled meanwhile.
        """
        if wait and not self._held:
            self._held.append(self._commands.get())
        elif self.is_empty:
            return []
        while not self._commands.empty():
            self._held.append(self._commands.get())
        now, self._held = sort(self._held)
        return now

    def is_cancelled(self, number: int) -> bool:
        """Whether that question was taken back while it is being answered."""
        while not self._commands.empty():
            self._held.append(self._commands.get())
        return frames.Cancel(number) in self._held

    def _read(self) -> None:
        while data := self._connection.recv(65_536):
            for command in self._records.feed(data):
                self._commands.put(command)
                self._heard()


def sort(commands: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Which commands to obey now, and which to hold: all but the questions, and one of these."""
    cancelled = {one.number for one in commands if isinstance(one, frames.Cancel)}
    asks = [one for one in commands if isinstance(one, frames.Ask | frames.Look)]
    others = [one for one in commands
              if not isinstance(one, frames.Ask | frames.Look | frames.Cancel)]  # fmt: skip
    waiting = {one.number for one in asks}
    now = [*others, *(frames.Cancel(number) for number in cancelled - waiting)]
    left = [one for one in asks if one.number not in cancelled]
    return now + left[:1], left[1:]


class Worker:
    """A model that answers."""

    def __init__(self, served: Asked, connection: socket.socket, inbox: Inbox) -> None:
        self._served, self._outlet, self._inbox = served, Outlet(connection), inbox

    @property
    def idle(self) -> bool:
        return self._served.idle

    def turn(self) -> None:
        """Obeys what is asked, and computes a step; waits where there is nothing to do."""
        begun = time.perf_counter()
        commands = self._inbox.batch(wait=self.idle)
        while commands:
            for command in commands:
                self.obey(command)
            is_late = time.perf_counter() - begun >= PATIENCE
            commands = [] if is_late else self._inbox.batch(wait=False)
        self.step()

    def obey(self, command: frames.Command) -> None:
        """A request that cannot be taken is answered with the reason."""
        try:
            match command:
                case frames.Ask(number, request):
                    self._served.ask(number, request)
                case frames.Look(number, query):
                    is_cancelled = partial(self._inbox.is_cancelled, number)
                    self.send(frames.Replied(number, self._served.look(query, is_cancelled)))
                case frames.Cancel(number):
                    self._served.cancel(number)
        except MeshError as error:
            self._reject(command, error)
        except Exception as error:  # noqa: BLE001  one question's defect is not the engine's
            traceback.print_exc()
            self._reject(command, MeshError(f"the engine failed on this: {error!r}"[:300]))

    def _reject(self, command: frames.Command, error: MeshError) -> None:
        assert isinstance(command, frames.Ask | frames.Look)
        self.send(_rejection(command.number, error))

    def step(self) -> bool:
        """Whether something was told. What cannot be passed on ends its own answer."""
        ready = b""
        for outcome in self._served.step():
            try:
                ready += frames.encode(outcome)
            except ValueError as error:
                self._served.cancel(outcome.number)
                ready += frames.encode(_rejection(outcome.number, RequestError(str(error)[:300])))
        if ready:
            self._outlet.send(ready, self._served.hold)
        return bool(ready)

    def send(self, record: Struct) -> None:
        self._outlet.send(frames.encode(record))


def _rejection(number: int, error: MeshError) -> frames.Rejected:
    """A message may quote what a client wrote, which need not be Unicode."""
    message = str(error).encode(errors="replace").decode()
    return frames.Rejected(number, error.code, message, error.param)


if __name__ == "__main__":
    main(int(sys.argv[1]))
    os._exit(0)  # no destructors: llama.cpp's take their time, and the memory goes back anyway
