"""Process-wide patches on py-libp2p 0.8.1. Applied once, by host.py. What takes the place of its
Yamux stands in muxer.py and channel.py.
"""

from __future__ import annotations

import logging
import socket
from functools import cache
from typing import Any

import libp2p.network.connection.swarm_connection as swarm_connection
import libp2p.pubsub.pubsub as pubsub
import libp2p.pubsub.rpc_queue as rpc_queue
import libp2p.stream_muxer.muxer_multistream as muxer_multistream
import libp2p.transport.tcp.tcp as tcp

from p2p_mesh.net.muxer import Muxer

QUEUE = 1024


@cache
def apply() -> None:
    _silence()
    # Whatever class `muxer_opt` has for Yamux, this one is taken.
    muxer_multistream.Yamux = Muxer
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
