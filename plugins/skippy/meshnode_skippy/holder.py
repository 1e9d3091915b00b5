"""A node's stages: what it holds of others' models, and of its own.

Theory of operation:

1. One lease is one stream. The coordinator orders, this side performs and reports (lease.py). The
   end of the stream is the end of the lease, and so is a coordinator that is silent for long, a
   worker that dies or does not say that it lives, and a stage that waits for its ring for too long.
   Then worker and memory are given back at once; the composed file stays in the cache.
2. The link to the next stage is a stream that this side opens, and from the stage before one that
   this side is given. Whoever opens one shows the run and the secret of the stage, which its
   coordinator told it.
3. What a stage does while it is held: held.py.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from meshnode_skippy import lease
from meshnode_skippy.held import NOTHING, Held, Own, soon
from meshnode_skippy.lease import Hello
from meshnode_skippy.local import within
from meshnode_skippy.process import WORKER, StageProcess
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.silence import Slack
from p2p_mesh.core.wire import decode
from p2p_mesh.errors import EngineDied, Overloaded, Refused, Unavailable
from p2p_mesh.serve.backend import Mesh, Stream


class Holder:
    """All stages of one node."""

    def __init__(self, mesh: Mesh, *, worker: str = WORKER) -> None:
        self._mesh = mesh
        self._worker = worker
        self._held: dict[tuple[bytes, int], Held] = {}
        self._leases: Counter[PeerId] = Counter()
        self._slack = Slack()

    async def attend(self, stream: Stream, peer: PeerId) -> None:
        """A lease, from its `prepare` to its end."""
        await self._hold(stream, peer, NOTHING)

    async def meet(self, stream: Stream, peer: PeerId) -> None:
        """A link from the stage before, which is a member's or this node's own."""
        hello: Hello = decode(await soon(stream), Hello)
        held = self._held.get((hello.run, hello.stage))
        if held is None:
            raise Unavailable("this node does not hold that stage")
        if not hmac.compare_digest(held.asked.secret, hello.secret):
            raise Refused("the secret of the stage is another")
        await held.take(stream, hello.epoch)

    def open(self, peer: PeerId, own: Own = NOTHING) -> AbstractAsyncContextManager[Stream]:
        """A lease of another node, or of this one."""
        if peer == self._mesh.me():
            return within(lambda stream: self._hold(stream, peer, own))
        return self._mesh.open_stream(peer, lease.STAGE)

    def process(self, run: bytes, stage: int) -> StageProcess:
        """The worker of a stage that is loaded here. Raises EngineDied where it is not."""
        held = self._held.get((run, stage))
        if held is None or held.process is None:
            raise EngineDied("the first stage has ended")
        return held.process

    async def _hold(self, stream: Stream, peer: PeerId, own: Own) -> None:
        asked = lease.read_prepare(await soon(stream))
        with self._counted(peer):
            held = Held(
                self._mesh, asked, stream, own, peer=peer, worker=self._worker,
                slack=self._slack, reach=self._reach,
            )  # fmt: skip
            key = (asked.run, asked.stage)
            if self._held.setdefault(key, held) is not held:
                raise Refused("that stage is held already")
            try:
                await held.run()
                self._slack.read(0)
            finally:
                del self._held[key]

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        if self._leases[peer] >= lease.LEASES_OF_A_PEER or self._leases.total() >= lease.LEASES:
            raise Overloaded("this node holds as many stages as it may", retry_after=30.0)
        self._leases[peer] += 1
        try:
            yield
        finally:
            self._leases[peer] -= 1
            self._leases += Counter()  # forgets who has none

    def _reach(self, peer: PeerId) -> AbstractAsyncContextManager[Stream]:
        """A link to a stage, there or here."""
        if peer == self._mesh.me():
            return within(lambda stream: self.meet(stream, peer))
        return self._mesh.open_stream(peer, lease.ACTIVATIONS)
