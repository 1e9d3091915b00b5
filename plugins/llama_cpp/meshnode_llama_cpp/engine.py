"""The node's side of an engine process: start it, ask it, listen to it, end it.

Theory of operation:

1. The process gets one end of a socket pair, a scrubbed environment and nothing else. Commands go
   out through a queue and one task; reports come in through another, which never waits for
   whoever reads an answer: each answer has a queue as long as it can become.
2. The end of the connection is the end of the engine, whoever closed it. The task that reads then
   waits for the process, words the reason and wakes everybody.
3. `run_engine` is the only owner of the process. However it is left, the process is gone after:
   hung up on, and killed if it has not ended within a second.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from msgspec import Struct

from meshnode_llama_cpp import frames
from meshnode_llama_cpp.memory import flashes
from meshnode_llama_cpp.process import start, threads
from meshnode_llama_cpp.template import HELD
from p2p_mesh.core.offers import Take
from p2p_mesh.core.records import Delta, InferenceRequest, Query, Reply
from p2p_mesh.errors import EngineDied, MeshError, ModelError, RequestError, from_code
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Description, Fit, Load

WORKER = "meshnode_llama_cpp.worker"

GRACE = 1.0
"""Seconds that an engine which was asked to end has, and again after it was killed."""

_TAIL_LINES, _TAIL_LENGTH = 300, 400  # a traceback has up to 200
_SPARE_WORDS = 8  # a last delta without a token, an error, and some

Word = Delta | Reply | MeshError


class Words:
    """What the engine says to one question, as it comes: deltas, or a reply, or an error that
    ends it. A memory channel would do, and would cost two turns of the loop for each word.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._said: deque[Word] = deque()
        self._is_over = False
        self._take: Take[Delta] | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def offer(self, take: Take[Delta]) -> None:
        """See core/offers.py."""
        self._take = take

    def say(self, word: Word, *, last: bool = False) -> None:
        """ValueError where more is said than can have been asked for."""
        if not last and isinstance(word, Delta) and self._is_taken(word):
            return
        if len(self._said) >= self._most:
            raise ValueError("more words than an answer can have")
        self._said.append(word)
        self._is_over = last
        self._waiting.unpark()

    def _is_taken(self, delta: Delta) -> bool:
        if self._take is None or self._said or not self._waiting:
            return False
        return self._take(delta)

    async def next(self) -> Word | None:
        """The next word, at once where it is there; None after the last."""
        while not self._said:
            if self._is_over:
                return None
            await self._waiting.park()
        return self._said.popleft()

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        word = await self.next()
        if word is None:
            raise StopAsyncIteration
        if isinstance(word, MeshError):
            raise word
        assert isinstance(word, Delta)
        return word


class LlamaEngine:
    """An open model. Made by `run_engine`."""

    def __init__(
        self,
        name: str,
        plan: Fit,
        process: trio.Process,
        stream: trio.SocketStream,
        *,
        progress: Callable[[float], None],
        reports: Callable[[], frames.Frames[Any]] = frames.reports,
    ) -> None:
        self._name = name
        self._progress = progress
        self._reports = reports
        self._plan = plan
        self._process = process
        self._stream = stream
        self._out, self._commands = trio.open_memory_channel[bytes](math.inf)
        self._numbers = itertools.count()
        self._answers: dict[int, Words] = {}
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._heard_all = trio.Event()
        self._ready: frames.Ready | None = None
        self._failure: MeshError | None = None
        self._settled = trio.Event()
        self._closing = False
        self._broken = ""
        self._reason = ""
        self._ended = trio.Event()

    def describe(self) -> Description:
        ready = self._ready
        return Description(
            capabilities=frozenset(ready.capabilities if ready else ()),
            context=self._plan.context,
            slots=self._plan.slots,
            resumable=True,
            numerics=ready.numerics if ready else "",
            device=ready.device if ready else "",
            pid=self._process.pid,
            notes=ready.notes if ready else (),
        )

    @asynccontextmanager
    async def generate(self, request: InferenceRequest) -> AsyncIterator[AsyncIterator[Delta]]:
        """The answer to a request; leaving the context cancels it."""
        most = request.choices * (self._plan.context + _SPARE_WORDS)
        number, words = self._begin(most, lambda number: frames.Ask(number, request))
        try:
            yield words
        finally:
            self._leave(number)

    async def query(self, query: Query) -> Reply:
        """What is answered at once."""
        number, words = self._begin(_SPARE_WORDS, lambda number: frames.Look(number, query))
        try:
            word = await words.next()
        finally:
            self._leave(number)
        if isinstance(word, MeshError):
            raise word
        assert word is not None
        assert not isinstance(word, Delta)
        return word

    def _begin(self, most: int, command: Callable[[int], Struct]) -> tuple[int, Words]:
        """Asks, and makes the queue for what comes: at most so many words."""
        if self._ended.is_set() or self._closing:
            raise EngineDied(self._reason or f"the engine of {self._name} was closed")
        number = next(self._numbers)
        words = Words(most)
        self._post(command(number))
        self._answers[number] = words
        return number, words

    def _leave(self, number: int) -> None:
        if self._answers.pop(number, None) is not None:
            self._post(frames.Cancel(number))

    async def wait_ended(self) -> str:
        await self._ended.wait()
        return self._reason

    async def close(self) -> None:
        """Hangs up, which ends the process; kills it if it does not."""
        self._closing = True
        # Not a frame: who would send it may be cancelled already.
        with suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(GRACE):
                await self._process.wait()
            if self._process.returncode is None:
                self._process.kill()
                with trio.move_on_after(GRACE):
                    await self._process.wait()

    @asynccontextmanager
    async def running(self, command: Struct) -> AsyncIterator[None]:
        """Opens the model with this command, and ends the process when the context is left.
        Raises ModelError and EngineDied.
        """
        try:
            with bare():
                async with trio.open_nursery() as nursery:
                    try:
                        nursery.start_soon(self._send)
                        nursery.start_soon(self._listen)
                        assert self._process.stderr is not None
                        nursery.start_soon(self._hear, self._process.stderr)
                        self._post(command)
                        await self._wait_ready()
                        yield
                    finally:
                        await self.close()
                        nursery.cancel_scope.cancel()
        finally:
            self._settle()
            self._stream.socket.close()

    def _post(self, command: Struct) -> None:
        """Never waits, so that nothing is cancelled in the middle of a frame."""
        try:
            frame = frames.encode(command)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise RequestError(f"the request cannot be passed on: {error}") from error
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._out.send_nowait(frame)

    async def _send(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for frame in self._commands:
                await self._stream.send_all(frame)

    async def _listen(self) -> None:
        """Reads until the connection ends; then it tells why."""
        records = self._reports()
        try:
            while data := await self._receive():
                for report in records.feed(data):
                    self._take(report)
        except ValueError as error:  # nonsense, or more than was asked for
            self._process.kill()
            self._broken = f"broke the protocol ({error})"
        except (OSError, trio.ClosedResourceError):
            pass
        await self._bury()

    async def _receive(self) -> bytes:
        """What there is, once there is something. A stream would try first and wait then, twice
        the calls for each token.
        """
        await trio.lowlevel.wait_readable(self._stream.socket)
        return os.read(self._stream.socket.fileno(), 65_536)

    async def _hear(self, stream: trio.abc.ReceiveStream) -> None:
        """Keeps the last lines of stderr, where llama.cpp says what went wrong."""
        line = b""
        async with stream:
            async for data in stream:
                *lines, line = (line + data).split(b"\n")
                self._tail.extend(map(_readable, lines))
                line = line[-_TAIL_LENGTH:]
            self._tail.append(_readable(line))
        self._heard_all.set()

    def _take(self, report: Any) -> None:
        match report:
            case frames.Progress(share):
                self._progress(share)
            case frames.Ready():
                self._ready = report
                self._settled.set()
            case frames.Failed(reason):
                self._failure = ModelError(reason)
                self._settled.set()
            case frames.Answer(number, delta):
                self._pass_on(number, delta, last=delta.usage is not None)
            case frames.Replied(number, reply):
                self._pass_on(number, reply, last=True)
            case frames.Rejected(number, code, message, param):
                self._pass_on(number, from_code(code, message, param=param), last=True)

    def _pass_on(self, number: int, word: Word, *, last: bool) -> None:
        answer = self._answers.get(number)
        if answer is None:
            return  # cancelled, and the engine does not know yet
        answer.say(word, last=last)
        if last:
            del self._answers[number]

    async def _bury(self) -> None:
        with trio.move_on_after(GRACE):
            await self._process.wait()
            await self._heard_all.wait()
        if self._process.returncode is None:
            self._process.kill()  # it closed its end and lives on
            await self._process.wait()
        self._settle()

    def _settle(self) -> None:
        """Tells everybody that the engine ended; harmless a second time."""
        self._reason = self._reason or self._word_reason()
        self._failure = self._failure or EngineDied(self._reason)
        self._settled.set()
        self._ended.set()
        for answer in self._answers.values():
            answer.say(EngineDied(self._reason), last=True)
        self._answers.clear()

    def _word_reason(self) -> str:
        if self._closing:
            return f"the engine of {self._name} was closed"
        if HELD in self._tail:
            return f"the chat template of {self._name} held its engine for too long"
        how = self._broken or _word_status(self._process.returncode or 0)
        last = next((line for line in reversed(self._tail) if line), "")
        if self._process.returncode == -signal.SIGKILL:
            last = ""  # whoever killed it did not ask it; its last line is of something else
        return f"the engine of {self._name} {how}" + (f"; its last words: {last}" if last else "")

    async def _wait_ready(self) -> None:
        await self._settled.wait()
        if self._ready is None:
            raise self._failure or EngineDied(self._reason)


@asynccontextmanager
async def run_engine(load: Load, plan: Fit) -> AsyncIterator[LlamaEngine]:
    """Starts a process, loads the model, and ends the process when the context is left."""
    process, stream = await start(WORKER)
    engine = LlamaEngine(load.model.id, plan, process, stream, progress=load.progress)
    async with engine.running(open_command(load, plan)):
        yield engine


def open_command(load: Load, plan: Fit) -> frames.Open:
    """What an engine is told first."""
    return frames.Open(
        name=load.model.id,
        path=load.model.path,
        context=plan.context,
        slots=plan.slots,
        threads=load.threads or threads(),
        memory_limit=load.memory_limit,
        kv_type=load.kv_type or "f16",
        gpu_layers=load.gpu_layers,
        flash=flashes(load, plan.context, plan.slots),
        deterministic=load.deterministic,
        speculation=load.speculation is not False,
        draft=load.draft.path if load.draft else None,
        projector=load.projector.path if load.projector else None,
    )


def _readable(line: bytes) -> str:
    return line[-_TAIL_LENGTH:].decode(errors="replace").strip()


def _word_status(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in signal.valid_signals() else str(-status)
    hint = " (often the system, which is out of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
