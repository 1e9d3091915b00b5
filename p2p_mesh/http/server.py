"""HTTP/1.1 on trio: Hypercorn's protocol, on sockets and connections of our own.

Hypercorn 0.18's own trio worker has defects that matter here (tests/real/test_http_server.py
holds each of them to be cured), so it lends only its protocol machine:

1. It sends under a shield without a deadline: a client that stops reading pins its task, and
   the shutdown. Here a send has a deadline, and one that is cut off closes the connection.
2. It tells the application of a disconnect from inside the application's last send; whoever
   listens (Starlette's own StreamingResponse does) cancels that send, and the connection is
   never closed or used again. Here the news waits until the last send is done (exchange.py).
3. The same news waits for room in the application's queue, which a body that nobody reads has
   filled: both wait for ever. Here the queue is emptied meanwhile.
4. It stops reading while a pipelined request waits, and so misses that the client has left.
   Here reading goes on, up to a few buffers.
5. It offers HTTP/2 and lets child processes inherit its sockets. Here it does neither.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from starlette.types import ASGIApp, Receive, Scope, Send

from p2p_mesh.errors import SettingsError
from p2p_mesh.http.exchange import Exchange
from p2p_mesh.journal import Journal

SILENT = Journal()

EVERYWHERE = "*"
"""As a host to listen on: all interfaces."""

HEAD_LIMIT = 32_768
"""Bytes of a request line and its headers."""
IDLE_TIMEOUT = 75.0
"""Seconds that a connection may stay without a request, or a request's head may take."""
WRITE_TIMEOUT = 30.0
"""Seconds that one write may take: a client that reads nothing for so long is dropped."""
MAX_CONNECTIONS = 512
MAX_OF_ONE = 64
"""Connections of one other machine."""
READ_SIZE = 65_536
READ_AHEAD = 4
"""Buffers read while the protocol cannot take more."""


async def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    flag: str = "--port",
    write_timeout: float = WRITE_TIMEOUT,
    idle_timeout: float = IDLE_TIMEOUT,
    journal: Journal = SILENT,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; `task_status` gets the port. Port 0 is any free one.

    `localhost` is 127.0.0.1 and, where there is IPv6, ::1; EVERYWHERE is all addresses of both
    versions. Raises SettingsError where the port is not to be had, naming the `flag` that chooses
    another.
    """
    listeners = await _bind(host, port, flag)
    bound: int = listeners[0].socket.getsockname()[1]
    config = _config(idle_timeout)

    room = Room(most=_most_connections())

    async def handle(stream: trio.SocketStream) -> None:
        connection = Connection(app, config, stream, write_timeout)
        try:
            with room.taken_by(stream) as is_free:
                if is_free:
                    await connection.run()
                else:
                    await trio.aclose_forcefully(stream)
        except* (OSError, h11.LocalProtocolError):
            pass  # the client is gone, or speaks no HTTP
        except* Exception as group:  # noqa: BLE001  one connection's end is not the server's
            journal.error("http_failed", f"a connection failed: {group!r}", reason=repr(group))

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, handle, listeners)
        task_status.started(bound)


class Room:
    """How many connections there may be: each takes a descriptor, which everything else that the
    node opens needs too, and a client that only connects costs nothing to be.
    """

    def __init__(self, most: int = MAX_CONNECTIONS, most_of_one: int = MAX_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._held: Counter[str] = Counter()

    @contextmanager
    def taken_by(self, stream: trio.SocketStream) -> Iterator[bool]:
        """Whether there was room. Of one other machine only so many come in; this machine's
        programs share an address, and are bounded together with all.
        """
        address = _address_of(stream)
        is_far = not ipaddress.ip_address(address).is_loopback
        if self._held.total() >= self._most or (
            is_far and self._held[address] >= self._most_of_one
        ):
            yield False
            return
        self._held[address] += 1
        try:
            yield True
        finally:
            self._held[address] -= 1
            if not self._held[address]:
                del self._held[address]


def _most_connections() -> int:
    """A quarter of the files that this process may open: there are two ports, and the rest of the
    node needs files too.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 4)


def _address_of(stream: trio.SocketStream) -> str:
    try:
        return str(stream.socket.getpeername()[0]).partition("%")[0]
    except OSError:  # it has left already
        return "::1"


def _config(idle_timeout: float) -> Config:
    config = Config()
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.h11_max_incomplete_size = HEAD_LIMIT
    config.keep_alive_timeout = idle_timeout
    return config


# A name for the addresses of both versions of IP.
_BOTH = {"localhost": ("127.0.0.1", "::1"), EVERYWHERE: ("0.0.0.0", "::")}


async def _bind(host: str, port: int, flag: str) -> list[trio.SocketListener]:
    if host not in _BOTH:
        return await _listen(host, port, flag)
    version_4, version_6 = _BOTH[host]
    listeners = await _listen(version_4, port, flag)
    port = listeners[0].socket.getsockname()[1]
    if has_ipv6():
        try:
            # Another program there would get some of what is meant for us.
            listeners += await _listen(version_6, port, flag)
        except SettingsError:
            for listener in listeners:
                await listener.aclose()
            raise
    return listeners


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def _listen(host: str, port: int, flag: str) -> list[trio.SocketListener]:
    try:
        return [*await trio.open_tcp_listeners(port, host=host)]
    except socket.gaierror as error:
        raise SettingsError(f"{host!r} is not an address to listen on: {error}") from error
    except OSError as error:
        raise SettingsError(why_not(error.errno, host, port, flag)) from error


def why_not(number: int | None, host: str, port: int, flag: str) -> str:
    match number:
        case errno.EADDRINUSE:
            return f"port {port} is in use; choose another with {flag}"
        case errno.EACCES:
            return f"port {port} is not open to this user; choose another with {flag}"
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine"
    return f"port {port} on {host} cannot be opened: {errno.errorcode.get(number or 0, number)}"


class Http1(H11Protocol):  # type: ignore[misc]  # hypercorn's types are skipped
    """HTTP/1.1 and nothing else: an offer to change to HTTP/2 is left unanswered."""

    async def _check_protocol(self, event: object) -> None:
        pass


class Connection:
    """A client's connection, from its first byte to its close."""

    def __init__(
        self, app: ASGIApp, config: Config, stream: trio.SocketStream, write_timeout: float
    ) -> None:
        self._app = app
        self._config = config
        self._stream = stream
        self._descriptor = stream.socket.fileno()
        self._write_timeout = write_timeout
        self._sending = trio.Lock()
        self._left = b""
        """Of the last push, what the system did not take."""
        self._idle = TrioSingleTask()
        self._is_over = False
        self._tasks: TaskGroup
        self._protocol: Http1

    async def run(self) -> None:
        async with TaskGroup() as self._tasks:
            self._protocol = Http1(
                self._answer, self._config, WorkerContext(None), self._tasks, {}, False,
                *self._addresses(), self._handle,
            )  # fmt: skip
            await self._restart_idle()
            await self._read()

    async def _answer(self, scope: Scope, receive: Receive, send: Send, *_: Any) -> None:
        exchange = Exchange(scope, receive, send, self._write, self._push)
        await self._app(exchange.scope, exchange.receive, exchange.send)

    def _addresses(self) -> tuple[tuple[str, int], tuple[str, int]]:
        client, server = self._stream.socket.getpeername(), self._stream.socket.getsockname()
        return client[:2], server[:2]

    async def _read(self) -> None:
        """Reads until the client is done, and says so at once, whatever the protocol waits for."""
        ahead, behind = trio.open_memory_channel[bytes](READ_AHEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._feed, behind)
            try:
                while data := bytes(await self._stream.receive_some(READ_SIZE)):
                    await ahead.send(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            nursery.cancel_scope.cancel()
        self._is_over = True
        await self._protocol.handle(Closed())
        await self._idle.stop()

    async def _feed(self, behind: trio.MemoryReceiveChannel[bytes]) -> None:
        async for data in behind:
            await self._protocol.handle(RawData(data))

    async def _handle(self, event: Event) -> None:
        """What the protocol wants done."""
        match event:
            case RawData():
                await self._write(event.data)
            case Closed():
                await self._close()
            case Updated(idle=True):
                await self._restart_idle()
            case Updated():
                await self._idle.stop()

    async def _write(self, data: bytes) -> None:
        """Mostly at once: what the system takes needs no deadline and no turn of the loop."""
        data, self._left = self._left + data, b""
        if not self._sending.locked():
            data = data[self._write_now(data) :]
        if data:
            await self._write_all(data)

    def _push(self, data: bytes) -> bool:
        """A WriteNow. What the system takes no more of goes out before what follows, as something
        always does, if only the end.
        """
        if self._left or self._sending.locked():
            return False
        count = self._write_now(data)
        self._left = data[count:] if count else b""
        return count > 0

    def _write_now(self, data: bytes) -> int:
        """How many bytes the system took."""
        try:
            return os.write(self._descriptor, data) if self._stream.socket.fileno() >= 0 else 0
        except OSError:  # it is full, or the client is gone: writing in earnest tells which
            return 0

    async def _write_all(self, data: bytes) -> None:
        is_whole = False
        async with self._sending:
            try:
                with trio.move_on_after(self._write_timeout):
                    await self._stream.send_all(data)
                    is_whole = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                if not is_whole:  # nothing may follow half a message
                    await trio.aclose_forcefully(self._stream)
        if not is_whole:
            await self._protocol.handle(Closed())

    async def _restart_idle(self) -> None:
        # An answer may end just after its client has left, with nothing more to wait for.
        if not self._is_over:
            await self._idle.restart(self._tasks, self._expire)

    async def _expire(self) -> None:
        await trio.sleep(self._config.keep_alive_timeout)
        await self._close()

    async def _close(self) -> None:
        """Ends the sending side first, so that the client gets all that was sent."""
        with suppress(trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError):
            await self._stream.send_eof()
        await self._stream.aclose()
