"""Whether a port for other nodes is to be had, before libp2p is told to take it."""

from __future__ import annotations

import socket


def is_free(host: str, port: int) -> bool:
    """Whether the port of last time can be had again."""
    if port == 0:
        return False
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
