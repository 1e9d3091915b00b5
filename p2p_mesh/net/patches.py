"""Process-wide patches on py-libp2p 0.8.1. Applied once, by host.py."""

from __future__ import annotations

import logging
import socket
from functools import cache
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.pubsub.pubsub as pubsub
import libp2p.pubsub.rpc_queue as rpc_queue
import libp2p.stream_muxer.yamux.yamux as yamux
import libp2p.transport.tcp.tcp as tcp

QUEUE = 1024
_CREDIT = 64 << 10
_WINDOW = 4 << 20


@cache
def apply() -> None:
    _silence()
    yamux.YamuxStream._auto_tune_and_send_window_update = _grant
    yamux.Yamux._write_frame = _write_frame
    tcp._set_reuse_flags = _reuse_address
    _widen_queues()


def _silence() -> None:
    """libp2p logs what peers do at warning and error level, in sentences for its developers;
    ours go through the journal. swarm_connection logs to the root logger, which would even
    install a handler that writes to the terminal.
    """
    logger = logging.getLogger("libp2p")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    swarm_connection.logging = logging.getLogger("libp2p.network.connection")


async def _grant(self: Any, *, bytes_read: int = 0) -> None:
    """Returns the credit for what was read in batches: each small read would otherwise send,
    encrypted, a frame of its own. The window grows to 4 MiB at the first batch.
    """
    self._pending_recv_release += bytes_read
    if self._pending_recv_release < _CREDIT:
        return
    credit, self._pending_recv_release = self._pending_recv_release, 0
    if self.target_recv_window < _WINDOW:
        credit += _WINDOW - self.target_recv_window
        self.target_recv_window = _WINDOW
    self.recv_window += credit
    await self.send_window_update(credit)


async def _write_frame(self: Any, data: bytes) -> None:
    """As the original, without the log line that it formats for every frame."""
    async with self._write_lock:
        await self.secured_conn.write(data)


def _reuse_address(listener: Any) -> None:
    """The original also sets SO_REUSEPORT: then a second node on the same port starts without
    a word, and the two share its connections by chance.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _widen_queues() -> None:
    """Defect K: queues of 32 drop, silently, what a burst of announcements brings."""
    pubsub.SUBSCRIPTION_CHANNEL_SIZE = QUEUE
    for kind in (rpc_queue.PriorityQueue, rpc_queue.RpcQueue):
        kind.__init__.__defaults__ = tuple(
            QUEUE if value == rpc_queue.OutBoundQueueSize else value
            for value in kind.__init__.__defaults__
        )
