"""A stage that is held for a coordinator: from its `prepare` to the end of its worker.

1. It performs one order after the other and reports; whatever ends it ends the lease.
2. It opens a link to the next stage for each `commit`, and takes those from the stage before. A
   newer epoch replaces the link of an older one.
3. A link that ends is told to the coordinator, which decides. Nothing is made anew from here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio
from meshnode_llama_cpp.process import threads as own_threads

from meshnode_skippy import lease, news, parts
from meshnode_skippy.frames import OpenStage
from meshnode_skippy.lease import (
    Broken,
    Commit,
    Committed,
    Hello,
    Loaded,
    Order,
    Prepare,
    Prepared,
    Progress,
    Renew,
    Terms,
    Welcome,
)
from meshnode_skippy.process import StageProcess, run_stage
from meshnode_skippy.pump import Pump
from p2p_mesh.core.names import PeerId
from p2p_mesh.core.silence import Slack
from p2p_mesh.core.wire import encode
from p2p_mesh.errors import EngineDied, MeshError, ModelError, RemoteError, Unavailable
from p2p_mesh.groups import bare
from p2p_mesh.serve.backend import Mesh, Stream

REPORT_EVERY = 0.25
"""Seconds between two reports of progress."""

_MOST_WORDS = 64  # that wait for the coordinator to take them


@dataclass(frozen=True, slots=True)
class Own:
    """What only this node's own user says of its own stages."""

    draft: str | None = None
    memory_limit: int | None = None
    gpu_layers: int | None = None


NOTHING = Own()


class Held:
    """A stage that is held for a coordinator."""

    process: StageProcess | None = None

    def __init__(
        self,
        mesh: Mesh,
        asked: Prepare,
        stream: Stream,
        own: Own,
        *,
        peer: PeerId,
        worker: str,
        slack: Slack,
        reach: Callable[[PeerId], AbstractAsyncContextManager[Stream]],
    ) -> None:
        self.asked = asked
        self._mesh = mesh
        self._stream = stream
        self._own = own
        self._peer = peer
        self._worker = worker
        self._slack = slack
        self._reach = reach
        self._terms = Terms()
        self._heard = 0
        """The epoch of the newest link from the stage before."""
        self._direct_in = self._direct_out = 0
        """The epochs for which direct links were made, or could not be."""
        self._orders, self._given = trio.open_memory_channel[Order](1)
        self._say, self._words = trio.open_memory_channel[lease.Report](_MOST_WORDS)
        self._told = -1.0
        self._pump: Pump | None = None

    async def run(self) -> None:
        """Until the lease ends. Raises what ended it, where that was not the coordinator."""
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, nursery.cancel_scope)
                nursery.start_soon(self._speak, nursery.cancel_scope)
                try:
                    await self._perform()
                finally:
                    nursery.cancel_scope.cancel()

    async def _listen(self, scope: trio.CancelScope) -> None:
        """Takes orders, until the coordinator ends the lease, or breaks the rules."""
        try:
            while True:
                with trio.fail_after(lease.SILENCE):
                    frame = await self._stream.receive()
                order = lease.read_order(frame)
                if not isinstance(order, Renew):
                    self._terms.order(order)
                    self._orders.send_nowait(order)
        except (Unavailable, trio.TooSlowError):
            scope.cancel()
        except trio.WouldBlock:
            raise RemoteError("an order came before the last one was done") from None

    async def _speak(self, scope: trio.CancelScope) -> None:
        try:
            async for word in self._words:
                await self._stream.send(encode(word))
        except Unavailable:
            scope.cancel()

    def _tell(self, report: lease.Report) -> None:
        self._terms.report(report)
        try:
            self._say.send_nowait(report)
        except trio.WouldBlock:
            raise Unavailable("the coordinator takes no reports") from None

    def _progress(self, share: float) -> None:
        now = trio.current_time()
        if now - self._told >= REPORT_EVERY:
            self._told = now
            self._tell(Progress(share=min(max(share, 0.0), 1.0)))

    async def _next(self) -> Order:
        with trio.move_on_after(lease.IDLE):
            return await self._given.receive()
        raise Unavailable("nobody went on with the stage")

    async def _perform(self) -> None:
        asked = self.asked
        async with parts.beating(self._progress, 0.0, parts.OPENED):
            package = await self._mesh.package(asked.package)
        model = await parts.study(
            package, context=asked.context, slots=asked.slots, kv_type=asked.kv_type,
            wire=asked.wire,
        )  # fmt: skip
        if obstacle := self._obstacle(model.total) or model.obstacle(asked.start, asked.end):
            raise ModelError(f"layers {asked.start} to {asked.end} can be no stage: {obstacle}")
        memory = model.need(asked.start, asked.end)
        async with self._mesh.lease(memory):
            found = await parts.gather(package, asked.start, asked.end, self._progress)
            self._tell(Prepared(memory_bytes=memory))
            await self._next()
            async with run_stage(
                self._command(found, model.total), progress=self._progress, worker=self._worker
            ) as process:
                await self._serve(process)

    def _obstacle(self, total: int) -> str:
        asked = self.asked
        if asked.end > total:
            return f"the model has {total} layers"
        if (asked.stage == asked.stages - 1) != (asked.end == total):
            return f"only the last of {asked.stages} stages ends with layer {total}"
        return ""

    def _command(self, found: parts.Parts, total: int) -> OpenStage:
        asked, own, limits = self.asked, self._own, self._mesh.limits()
        threads = limits.threads or asked.threads or own_threads()
        return OpenStage(
            name=asked.model,
            path=found.path,
            metadata=found.metadata,
            wiring=found.wiring,
            stage=asked.stage,
            stages=asked.stages,
            context=asked.context,
            slots=asked.slots,
            threads=max(1, min(threads, self._mesh.resources().threads)),
            layers=asked.end - asked.start,
            total=total,
            embeddings=found.embeddings,
            window=found.window,
            memory_limit=own.memory_limit,
            kv_type=asked.kv_type,
            gpu_layers=limits.gpu_layers if own.gpu_layers is None else own.gpu_layers,
            deterministic=asked.deterministic,
            speculation=asked.speculation,
            draft=own.draft,
            wire=asked.wire,
        )

    # A stage that is loaded

    async def _serve(self, process: StageProcess) -> None:
        self._pump = Pump(process.link, self._lose)
        about = process.describe()
        self._tell(
            Loaded(
                numerics=about.numerics[:256],
                device=about.device[:256],
                notes=tuple(note[:1024] for note in about.notes[:16]),
            )
        )
        self.process, process.unlinked = process, self._unlinked
        try:
            with news.held(self._mesh, self.asked, self._peer):
                raise EngineDied(await self._live(process, self._pump))
        finally:
            self.process = self._pump = None

    async def _live(self, process: StageProcess, pump: Pump) -> str:
        """Until the worker ends; why."""
        with bare():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pump.run)
                nursery.start_soon(self._link, pump)
                nursery.start_soon(process.watch, self._slack)
                reason = await process.wait_ended()
                nursery.cancel_scope.cancel()
        return reason

    async def _link(self, pump: Pump) -> None:
        """Reaches the next stage as often as it is told to."""
        commit = await self._next()
        while True:
            assert isinstance(commit, Commit)
            with bare():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._connect, pump, commit)
                    commit = await self._given.receive()
                    nursery.cancel_scope.cancel()

    async def _connect(self, pump: Pump, commit: Commit) -> None:
        """One link to the next stage, until it ends."""
        pump.aim(None)
        try:
            async with self._reach(commit.next) as stream:
                hello = Hello(
                    run=self.asked.run, stage=commit.stage, secret=commit.secret,
                    epoch=commit.epoch,
                )  # fmt: skip
                await stream.send(encode(hello))
                welcome = lease.read_welcome(await soon(stream))
                pump.aim(stream)
                await self._dial(commit, welcome)
                self._tell(Committed(epoch=commit.epoch))
                await stream.listen(_nothing)
        except MeshError as error:
            pump.aim(None)
            self._tell(Broken(epoch=commit.epoch, reason=lease.words(error)))

    async def _dial(self, commit: Commit, welcome: Welcome) -> None:
        """Lets the worker reach the next one without the nodes between, if it can."""
        assert self.process is not None
        hosts = self._hosts(commit.next) if welcome.port else ()
        await self.process.dial(hosts, welcome.port, welcome.key)
        self._direct_out = commit.epoch

    def _hosts(self, peer: PeerId) -> tuple[str, ...]:
        if peer == self._mesh.me():
            return ("127.0.0.1",)
        for other, announcement in self._mesh.peers():
            if other == peer:
                return lease.hosts(announcement.addresses)
        return ()

    def _unlinked(self, reason: str) -> None:
        """A direct link broke. One that was replaced meanwhile is of an older epoch."""
        epoch = max(1, min(self._direct_in, self._direct_out))
        self._tell(Broken(epoch=epoch, reason=reason[:1024]))

    def _lose(self, error: MeshError) -> None:
        self._tell(Broken(epoch=max(1, self._terms.epoch), reason=lease.words(error)))

    async def take(self, stream: Stream, epoch: int) -> None:
        """A link from the stage before, until it ends."""
        if self._pump is None or self.process is None:
            raise Unavailable("the stage is not loaded", retry_after=1.0)
        if epoch <= self._heard:
            raise Unavailable(f"epoch {epoch} is over; the last one was {self._heard}")
        self._heard = epoch
        hear = self._pump.inlet()
        key = secrets.token_bytes(32)
        host = self._mesh.listens()
        port = 0 if host is None else await self.process.listen(key, host)
        self._direct_in = epoch
        await stream.send(encode(Welcome(port=port, key=key if port else b"")))
        try:
            await stream.listen(hear)
        except MeshError as error:
            if epoch == self._heard and self._pump is not None:
                self._tell(Broken(epoch=epoch, reason=lease.words(error)))


def _nothing(frame: bytes) -> None:
    raise RemoteError("a link is one way")


async def soon(stream: Stream) -> bytes:
    """A first frame, which nobody takes long to send."""
    with trio.move_on_after(lease.JOIN):
        return await stream.receive()
    raise Unavailable(f"nothing came within {lease.JOIN:g} s")
