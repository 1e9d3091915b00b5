"""A long cable from this machine to one that a test made: what goes through it arrives later.

Where the kernel delays nothing, this process is the cable. It carries packets between two TUN
devices, one of which is in a network namespace, so all goes through it, whoever dials whom and at
which port. It takes Linux, root and iproute2.

    async with open_cable(delay=0.025) as cable:      # a round trip of 50 ms
        async with start_node(path, "--p2p-host", cable.far, prefix=cable.prefix) as node:
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import trio

from p2p_mesh.testing.machines import run_ip

PACKET = 65_000
"""Bytes of a packet at most: few are many for one that Python carries."""
IN_FLIGHT = 4096
"""Packets on their way in one direction; more are lost, as on any cable."""
CLOSED = 9
"""A port at which nobody listens."""

_DEVICE = "/dev/net/tun"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h


@dataclass(frozen=True, slots=True)
class Cable:
    """Its two ends: the addresses of this machine and of the other at it."""

    near: str
    far: str
    namespace: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs at the far end."""
        return ("ip", "netns", "exec", self.namespace)

    async def round_trip(self) -> float:
        """Seconds until the kernel at the far end has refused a connection."""
        with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            begun = trio.current_time()
            with suppress(ConnectionRefusedError):
                await probe.connect((self.far, CLOSED))
            return trio.current_time() - begun


@asynccontextmanager
async def open_cable(*, delay: float) -> AsyncIterator[Cable]:
    """A cable through which a packet takes `delay` seconds. Raises CalledProcessError and OSError
    where the system allows none.
    """
    number = os.getpid()
    subnet = f"10.{200 + number % 50}.{number // 50 % 250}"
    cable = Cable(f"{subnet}.1", f"{subnet}.2", f"meshnode-{number}-far")
    here, there = f"mn{number % 1_000_000}n", f"mn{number % 1_000_000}f"
    await run_ip("netns", "add", cable.namespace)
    try:
        with _device(here) as near, _device(there) as far:
            await _connect(cable, here, there)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_carry, near, far, delay)
                nursery.start_soon(_carry, far, near, delay)
                yield cable
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await run_ip("netns", "del", cable.namespace)


@contextmanager
def _device(name: str) -> Iterator[int]:
    """A TUN device, which is there as long as it is open."""
    device = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
        yield device
    finally:
        os.close(device)


async def _connect(cable: Cable, here: str, there: str) -> None:
    inside = ("-n", cable.namespace)
    await run_ip("link", "set", there, "netns", cable.namespace)
    await run_ip(*inside, "link", "set", "lo", "up")
    for where, name, own, other in (
        ((), here, cable.near, cable.far),
        (inside, there, cable.far, cable.near),
    ):
        await run_ip(*where, "link", "set", name, "mtu", str(PACKET), "up")
        await run_ip(*where, "addr", "add", own, "peer", other, "dev", name)


async def _carry(source: int, sink: int, delay: float) -> None:
    """One way: in order, each packet `delay` after it came."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](IN_FLIGHT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_deliver, receive, sink)
        while True:
            await trio.lowlevel.wait_readable(source)
            due = trio.current_time() + delay
            with suppress(BlockingIOError, trio.WouldBlock):
                send.send_nowait((due, os.read(source, PACKET)))


async def _deliver(receive: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: int) -> None:
    async for due, packet in receive:
        await trio.sleep_until(due)
        with suppress(OSError):  # a device that is full, or down, takes nothing
            os.write(sink, packet)
