"""A network in memory: real Noise, Yamux and GossipSub, no sockets, and virtual latency.

Give each host of a test a transport of the same MemoryNetwork. Under trio's autojump clock an
hour of a mesh passes in seconds, and the same way each time. Mind that threads defeat that
clock, and that py-libp2p reads the wall clock in places (its score and its rate limits).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import IListener, ITransport
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError

Accept = Callable[[Any], Any]


class MemoryNetwork:
    """The wire between all hosts of a test; `latency` is of one direction, in seconds, wherever
    two of them have no `delay` of their own.
    """

    def __init__(self, latency: float = 0.01) -> None:
        self.latency = latency
        self._listeners: dict[str, _Listener] = {}
        self._pipes: list[_Pipe] = []
        self._hosts = 0
        self._frozen: set[str] = set()
        self._dead: set[str] = set()
        self._cut: set[frozenset[str]] = set()
        self._delays: dict[frozenset[str], float] = {}

    def transport(self) -> MemoryTransport:
        """A machine of its own: its address is `transport.address`."""
        self._hosts += 1
        return MemoryTransport(self, f"10.0.{self._hosts // 250}.{self._hosts % 250 + 1}")

    def kill(self, transport: MemoryTransport) -> None:
        """As a process that is killed: every connection of that machine breaks, at once."""
        self._dead.add(transport.ip)
        for pipe in self._of(transport.ip):
            pipe.reset()

    def freeze(self, transport: MemoryTransport) -> None:
        """As a machine whose cable was pulled: nothing arrives any more, and nothing closes."""
        self._frozen.add(transport.ip)

    def thaw(self, transport: MemoryTransport) -> None:
        """Plugs the cable in again; what was sent meanwhile is lost."""
        self._frozen.discard(transport.ip)

    def cut(self, one: Sequence[MemoryTransport], other: Sequence[MemoryTransport]) -> None:
        """As a cable between two buildings that was cut: nothing passes from the machines of the
        one to those of the other, and nothing closes.
        """
        self._cut |= {frozenset({here.ip, there.ip}) for here in one for there in other}

    def heal(self) -> None:
        """Mends all cuts; what was sent meanwhile is lost."""
        self._cut.clear()

    def delay(self, one: MemoryTransport, other: MemoryTransport, latency: float) -> None:
        """From now on the way between these two takes so long, in each direction."""
        self._delays[frozenset({one.ip, other.ip})] = latency

    def latency_of(self, ends: frozenset[str]) -> float:
        return self._delays.get(ends, self.latency)

    def is_frozen(self, ends: frozenset[str]) -> bool:
        return bool(ends & self._frozen) or ends in self._cut

    def listen(self, address: str, listener: _Listener) -> None:
        if address in self._listeners:
            raise OpenConnectionError(f"{address} is in use")
        self._listeners[address] = listener

    def stop(self, address: str) -> None:
        self._listeners.pop(address, None)

    async def dial(self, ip: str, address: str) -> Any:
        ends = frozenset({ip, address.split("/")[2]})
        await trio.sleep(self.latency_of(ends))
        listener = self._listeners.get(address)
        if self.is_frozen(ends):
            await trio.sleep_forever()
        if listener is None or ends & self._dead:
            raise OpenConnectionError(f"nobody listens on {address}")
        here, there = self._connect(ends, ip)
        listener.accept(there)
        await trio.sleep(self.latency_of(ends))
        return RawConnection(here, initiator=True)

    def _connect(self, ends: frozenset[str], ip: str) -> tuple[_Pipe, _Pipe]:
        forth = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        back = trio.open_memory_channel[tuple[float, bytes]](math.inf)
        here = _Pipe(self, ends, forth[0], back[1], ("10.0.0.1", 4001))
        there = _Pipe(self, ends, back[0], forth[1], (ip, 10_000 + len(self._pipes)))
        self._pipes += [here, there]
        return here, there

    def _of(self, ip: str) -> list[_Pipe]:
        return [pipe for pipe in self._pipes if ip in pipe.ends]


class MemoryTransport(ITransport):  # type: ignore[misc]
    """What one host dials and listens with."""

    def __init__(self, network: MemoryNetwork, ip: str) -> None:
        self.ip = ip
        self.address = f"/ip4/{ip}/tcp/4001"
        self._network = network

    def protocols(self) -> list[str]:
        return ["ip4", "tcp"]

    def can_dial(self, address: Any) -> bool:
        return str(address).startswith("/ip4/")

    def can_listen(self, address: Any) -> bool:
        return self.can_dial(address)

    async def dial(self, address: Any) -> Any:
        return await self._network.dial(self.ip, str(address).split("/p2p/")[0])

    def create_listener(self, handler: Accept) -> _Listener:
        return _Listener(self._network, handler)


class _Listener(IListener):  # type: ignore[misc]
    def __init__(self, network: MemoryNetwork, handler: Accept) -> None:
        self._network = network
        self._handler = handler
        self._addresses: list[Any] = []
        self._scopes: set[trio.CancelScope] = set()

    async def listen(self, address: Any) -> None:
        self._network.listen(str(address), self)
        self._addresses.append(address)

    def get_addrs(self) -> tuple[Any, ...]:
        return tuple(self._addresses)

    def accept(self, pipe: _Pipe) -> None:
        trio.lowlevel.spawn_system_task(self._handle, pipe)

    async def _handle(self, pipe: _Pipe) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                await self._handler(pipe)
            except Exception:  # noqa: BLE001 - libp2p's TCP listener lets none out either
                pass
            finally:
                self._scopes.discard(scope)
                await pipe.close()

    async def close(self) -> None:
        for address in self._addresses:
            self._network.stop(str(address))
        for scope in tuple(self._scopes):
            scope.cancel()


class _Pipe(ReadWriteCloser):  # type: ignore[misc]
    """One end of a connection. Bytes arrive in order, `latency` after they were sent."""

    def __init__(
        self,
        network: MemoryNetwork,
        ends: frozenset[str],
        send: trio.MemorySendChannel[tuple[float, bytes]],
        receive: trio.MemoryReceiveChannel[tuple[float, bytes]],
        remote: tuple[str, int],
    ) -> None:
        self.ends = ends
        self._network = network
        self._send = send
        self._receive = receive
        self._remote = remote
        self._buffer = b""

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._network.is_frozen(self.ends):
            return
        due = trio.current_time() + self._network.latency_of(self.ends)
        try:
            self._send.send_nowait((due, bytes(data)))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the connection is closed", transport="memory") from error

    async def read(self, n: int | None = None) -> bytes:
        while not self._buffer:
            try:
                due, data = await self._receive.receive()
                await trio.sleep_until(due)
            except trio.EndOfChannel:
                return b""
            except trio.ClosedResourceError as error:
                raise ConnectionClosedError("closed", transport="memory") from error
            if not self._network.is_frozen(self.ends):
                self._buffer = data
        n = len(self._buffer) if n is None else n
        data, self._buffer = self._buffer[:n], self._buffer[n:]
        return data

    async def close(self) -> None:
        self.reset()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        self._send.close()
        self._receive.close()

    def get_remote_address(self) -> tuple[str, int]:
        return self._remote
