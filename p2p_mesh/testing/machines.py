"""Machines of a test: network namespaces, each with a cable to one switch that this process is
on as well. It takes root and iproute2.

    async with open_machines("abc") as machines:
        async with start_node(path, prefix=machines["a"].prefix) as node:
            await machines["a"].unplug()

Whatever happens, the namespaces are gone when the context ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Machine:
    """A network namespace; every other machine and this process reach it at its address."""

    namespace: str
    address: str
    cable: str
    """The end at the switch."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs there."""
        return ("ip", "netns", "exec", self.namespace)

    async def unplug(self) -> None:
        """Nothing arrives any more, and nothing closes."""
        await run_ip("link", "set", self.cable, "down")

    async def plug(self) -> None:
        """What was sent meanwhile is sent again, by those who still wait."""
        await run_ip("link", "set", self.cable, "up")


def is_possible() -> bool:
    """Whether this system lets us have machines."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


@asynccontextmanager
async def open_machines(keys: Sequence[str]) -> AsyncIterator[dict[str, Machine]]:
    """A machine for each key. Raises CalledProcessError where the system allows none."""
    number = os.getpid()
    # Every process has a network of its own, so that two runs do not meet.
    subnet = f"10.{100 + number % 100}.{number // 100 % 250}"
    switch = f"mn{number % 1_000_000}"
    machines = {
        key: Machine(f"meshnode-{number}-{key}", f"{subnet}.{place}", f"{switch}x{place}")
        for place, key in enumerate(keys, 1)
    }
    try:
        await run_ip("link", "add", switch, "type", "bridge")
        await run_ip("addr", "add", f"{subnet}.254/24", "dev", switch)
        await run_ip("link", "set", switch, "up")
        for machine in machines.values():
            await _connect(machine, switch)
        yield machines
    finally:
        with trio.CancelScope(shield=True):
            for machine in machines.values():
                await run_ip("netns", "del", machine.namespace, check=False)
                # The kernel takes its time over a namespace; the cable goes at once.
                await run_ip("link", "del", machine.cable, check=False)
            await run_ip("link", "del", switch, check=False)


async def _connect(machine: Machine, switch: str) -> None:
    await run_ip("netns", "add", machine.namespace)
    await run_ip("link", "add", machine.cable, "type", "veth",
              "peer", "name", "eth0", "netns", machine.namespace)  # fmt: skip
    await run_ip("link", "set", machine.cable, "master", switch, "up")
    there = ("-n", machine.namespace)
    await run_ip(*there, "addr", "add", f"{machine.address}/24", "dev", "eth0")
    await run_ip(*there, "link", "set", "eth0", "up")
    await run_ip(*there, "link", "set", "lo", "up")


async def run_ip(*words: str, check: bool = True) -> None:
    await trio.run_process(["ip", *words], check=check, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)  # fmt: skip
