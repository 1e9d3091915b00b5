"""Where a host listens: multiaddrs, this machine's interfaces, and why a port cannot be had."""

from __future__ import annotations

import errno
import ipaddress
from contextlib import suppress
from typing import Any

import psutil
import trio

from p2p_mesh.errors import SettingsError


async def why_deaf(address: str) -> SettingsError:
    """libp2p keeps to itself why it could not listen, so this tries once more."""
    parts = dict(zip(*[iter(address.strip("/").split("/"))] * 2, strict=False))
    host = parts.get("ip4") or parts.get("ip6") or ""
    port = parts.get("tcp", "0")
    family = trio.socket.AF_INET6 if "ip6" in parts else trio.socket.AF_INET
    try:
        with trio.socket.socket(family, trio.socket.SOCK_STREAM) as probe:
            await probe.bind((host, int(port)))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return SettingsError(f"port {port} is in use; choose another with --p2p-port")
        return SettingsError(f"cannot listen on {address}: {error.strerror or error}")
    except ValueError:
        pass
    return SettingsError(f"cannot listen on {address}")


def expand(address: str) -> tuple[str, ...]:
    """The addresses that a listening address stands for: a wildcard is every interface."""
    for kind, wildcard in (("ip4", "0.0.0.0"), ("ip6", "::")):
        head = f"/{kind}/{wildcard}/"
        if address.startswith(head):
            return tuple(
                f"/{kind}/{found}/{address[len(head) :]}"
                for found in _interfaces(version=int(kind[2]))
            )
    return (address,)


def _interfaces(version: int) -> tuple[str, ...]:
    """This machine's addresses, those that others can reach first; no link-local ones, which
    mean nothing without a zone.
    """
    found = set()
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            with suppress(ValueError):
                address = ipaddress.ip_address(entry.address.split("%")[0])
                if address.version == version and not address.is_link_local:
                    found.add(address)
    ordered = sorted(found, key=lambda address: (address.is_loopback, int(address)))
    return tuple(str(address) for address in ordered)


def remote_host(stream: Any) -> str:
    """The IP address at the other end of a raw connection."""
    try:
        return str(stream.stream.socket.getpeername()[0])
    except (AttributeError, OSError, IndexError):
        remote = stream.get_remote_address()
        return str(remote[0]) if remote else "?"
