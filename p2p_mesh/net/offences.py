"""What peers did against the protocols: counted, and told to the journal now and then."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque

import trio

from p2p_mesh.core.names import PeerId
from p2p_mesh.errors import Refused, RemoteError
from p2p_mesh.journal import Journal

QUIET = 30.0
"""Seconds between two warnings about the same peer."""

MAX_PEERS = 1000
MAX_WARNINGS = 20
"""Within QUIET, of all peers together: a stranger makes a new key for each offence."""


class Offences:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._counts: OrderedDict[PeerId, int] = OrderedDict()
        self._told: dict[PeerId, float] = {}
        self._warnings: deque[float] = deque()
        self.reasons: Counter[str] = Counter()
        """How often each rule was broken, of all peers together."""

    def refuse(self, peer: PeerId, protocol: str, error: RemoteError) -> None:
        """Notes why a peer was refused."""
        reason = error.reason if isinstance(error, Refused) else "malformed"
        self.note(peer, f"{protocol}: {error}", reason)

    def note(self, peer: PeerId, what: str, reason: str = "refused") -> None:
        count = self._counts[peer] = self._counts.pop(peer, 0) + 1
        if len(self._counts) > MAX_PEERS:
            oldest, _ = self._counts.popitem(last=False)
            self._told.pop(oldest, None)
        tell = self._journal.warning if self._is_news(peer) else self._journal.debug
        self.reasons[reason] += 1
        tell("bad_peer", f"{peer}: {what[:300]}", peer=peer, reason=reason, count=count)

    def _is_news(self, peer: PeerId) -> bool:
        now = trio.current_time()
        while self._warnings and now - self._warnings[0] >= QUIET:
            self._warnings.popleft()
        if len(self._warnings) >= MAX_WARNINGS or now - self._told.get(peer, -math.inf) < QUIET:
            return False
        self._told[peer] = now
        self._warnings.append(now)
        return True

    def count(self, peer: PeerId) -> int:
        return self._counts.get(peer, 0)
