"""Fetches files of a package from the members that serve them: all that answer at once, each in a
task of its own. Which piece is asked of whom, core/artifacts.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from math import inf
from random import Random
from typing import Protocol as Shape

import trio

from p2p_mesh.core.artifacts import Piece, Schedule, pieces
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import Artifact
from p2p_mesh.errors import MeshError, ModelError, RemoteError
from p2p_mesh.groups import bare
from p2p_mesh.journal import Journal
from p2p_mesh.serve.package.incoming import Incoming
from p2p_mesh.serve.package.local import LocalPackage
from p2p_mesh.serve.package.partial import Partial, Some

MAX_SOURCES = 6
"""Peers that are asked at a time."""

LOOK = 1.0
"""Seconds between two looks whether a late piece is to be asked of another peer,"""
SEEK = 2.0
"""and whether somebody else serves the package now."""


class Line(Shape):
    """A stream to a peer (net/artifacts.py)."""

    async def get(self, sha256: Digest, offset: int, length: int) -> memoryview | None: ...

    async def held(self, manifest: Digest) -> frozenset[Digest]: ...


Open = Callable[[PeerId], AbstractAsyncContextManager[Line]]


class Fetching:
    """The files of one package that are being fetched from peers; each has a content of its own."""

    def __init__(
        self,
        package: LocalPackage | Partial,
        files: Sequence[Artifact],
        *,
        total: int | None = None,
        seek: Callable[[], Sequence[PeerId]],
        is_announced: Callable[[PeerId], bool],
        open_line: Open,
        rng: Random,
        journal: Journal,
    ) -> None:
        """`total`: how many bytes are wanted of them; None: all. `seek`: who may serve it now, the
        likeliest first.
        """
        self.package = package
        whole = sum(file.artifact_bytes for file in files)
        self.total = whole if total is None else total
        self.done = 0
        self.came = 0
        """Bytes that came in this life; the others were here before."""
        self.started = trio.current_time()
        self.senders: dict[PeerId, int] = {}
        """Bytes that each has sent."""
        self._files = {file.sha256: file for file in files}
        self._incoming: dict[Digest, Incoming | Some] = {}
        self._rng = rng
        self._schedule = Schedule((), rng)
        self._seek = seek
        self._only: PeerId | None = None
        """Who alone is asked now, so that what is wrong is its fault."""
        self._is_announced = is_announced
        self._open = open_line
        self._journal = journal
        self._turns = trio.Semaphore(MAX_SOURCES)
        self._tried: set[PeerId] = set()
        self._asking = 0
        self._finishing = 0
        self._failure: MeshError | None = None
        self.has_lies = False
        """Something came that was not what its hash says."""
        self._news = trio.Event()

    @property
    def files(self) -> Sequence[Artifact]:
        return tuple(self._files.values())

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0

    def by_hub(self, file: Artifact) -> Callable[[float], None]:
        """Counts what the hub sends of a file, of which it sends all."""
        before = self.done - self._incoming[file.sha256].received

        def count(share: float) -> None:
            got = before + int(share * file.artifact_bytes)
            self.came += max(0, got - self.done)
            self.done = got

        return count

    @property
    def rate(self) -> float:
        """Bytes a second, since it began."""
        return self.came / max(0.001, trio.current_time() - self.started)

    async def run(self) -> None:
        """Returns when all is here, or nobody is left who might send the rest. What has come and is
        not wrong stays, whatever happens. Raises ModelError where it cannot be kept.
        """
        with bare():
            async with trio.open_nursery() as nursery:
                for file in self._left():
                    await self._begin(file, nursery)
                self._ask_more(nursery)
                while self._failure is None and self._is_under_way():
                    with trio.move_on_after(SEEK):
                        await self._news.wait()
                    self._ask_more(nursery)
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def run_one_by_one(self) -> None:
        """As `run`, of one peer after the other, each from the begin of a file: where pieces cannot
        be checked, this tells whose are wrong.
        """
        for peer in [one for one in self._seek() if self._schedule.has_met(one)]:
            if not self._left():
                return
            for file in self._left():
                await (await self.package.incoming(file.path)).forget()
            self.done = self.total - sum(file.artifact_bytes for file in self._left())
            self._only, self._tried = peer, set()
            self._schedule = Schedule((), self._rng)
            await self.run()

    def _left(self) -> tuple[Artifact, ...]:
        begun = self._incoming
        return tuple(
            file
            for digest, file in self._files.items()
            if digest not in begun or not begun[digest].is_finished
        )

    def _is_under_way(self) -> bool:
        return self._finishing > 0 or (self._asking > 0 and not self._schedule.is_done)

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _begin(self, file: Artifact, nursery: trio.Nursery) -> None:
        incoming = self._incoming[file.sha256] = await self.package.incoming(file.path)
        self.done += incoming.received
        wanted = pieces(file.sha256, file.artifact_bytes, incoming.missing())
        self._schedule.add(wanted)
        if not wanted:
            self._finish(file.sha256, nursery)

    def _ask_more(self, nursery: trio.Nursery) -> None:
        """Begins with everybody who is new."""
        for peer in self._seek() if self._only is None else (self._only,):
            if peer not in self._tried and not self._schedule.is_done:
                self._tried.add(peer)
                self._asking += 1
                nursery.start_soon(self._ask, peer, nursery)

    async def _ask(self, peer: PeerId, nursery: trio.Nursery) -> None:
        try:
            while (rest := self._schedule.rests_until(peer)) < inf:
                await trio.sleep_until(rest)
                async with self._turns:
                    if self._schedule.is_done or await self._try(peer, nursery):
                        return
        finally:
            self._asking -= 1
            self._wake()

    async def _try(self, peer: PeerId, nursery: trio.Nursery) -> bool:
        """Asks a peer until it is of no more use; False: until it failed."""
        try:
            async with self._open(peer) as line:
                self._schedule.meet(peer, await line.held(self.package.ref.manifest))
                with bare():
                    await self._converse(peer, line, nursery)
            return True
        except RemoteError as error:
            self._schedule.drop(peer)
            self._journal.warning(
                "artifacts_bad_peer", f"{peer} is asked no more: {error}", peer=peer,
                reason=str(error),
            )  # fmt: skip
        except MeshError as error:
            self._fail(peer, error)
        finally:
            self._wake()
        return False

    def _fail(self, peer: PeerId, error: MeshError) -> None:
        self._schedule.failed(peer, trio.current_time(), error.retry_after or 0.0)
        if not self._schedule.has_met(peer) and not self._is_announced(peer):
            self._schedule.drop(peer)  # nothing says that it has any of it
        self._journal.debug(
            "artifacts_source_failed", f"{peer} sends nothing: {error}", peer=peer,
            reason=str(error),
        )  # fmt: skip

    async def _converse(self, peer: PeerId, line: Line, nursery: trio.Nursery) -> None:
        async with trio.open_nursery() as asking:
            while self._schedule.is_of_use(peer):
                news = self._news
                while piece := self._schedule.choose(peer, trio.current_time()):
                    asking.start_soon(self._get, line, peer, piece, nursery)
                with trio.move_on_after(LOOK):
                    await news.wait()
            asking.cancel_scope.cancel()

    async def _get(self, line: Line, peer: PeerId, piece: Piece, nursery: trio.Nursery) -> None:
        data = await line.get(piece.file, piece.offset, piece.length)
        if data is None:
            self._schedule.lacks(peer, piece)
        else:
            if self._schedule.is_wanted(piece):
                await self._keep(piece, data)
            if self._schedule.arrived(peer, piece, trio.current_time()):
                self._count(peer, piece, nursery)
        self._wake()

    async def _keep(self, piece: Piece, data: memoryview) -> None:
        try:
            is_good = await self._incoming[piece.file].put(piece.number, data)
        except ModelError as error:
            self._failure = error
            self._wake()
            await trio.sleep_forever()  # until all of it is cancelled
        if not is_good:
            self.has_lies = True
            path = self._files[piece.file].path
            raise RemoteError(f"piece {piece.number} of {path} is not what its hash says")

    def _count(self, peer: PeerId, piece: Piece, nursery: trio.Nursery) -> None:
        self.done += piece.length
        self.came += piece.length
        self.senders[peer] = self.senders.get(peer, 0) + piece.length
        if self._schedule.is_whole(piece.file):
            self._finish(piece.file, nursery)

    def _finish(self, file: Digest, nursery: trio.Nursery) -> None:
        self._finishing += 1
        nursery.start_soon(self._name, file)

    async def _name(self, file: Digest) -> None:
        """Gives a file its name."""
        try:
            if not await self._incoming[file].finish():
                self._doubt(self._files[file])
        except ModelError as error:
            self._failure = error
        finally:
            self._finishing -= 1
            self._wake()

    def _doubt(self, file: Artifact) -> None:
        """A file came whole, and is wrong. Its pieces have no hashes, so it is known who lies only
        where one sent them all.
        """
        self.has_lies = True
        self.done -= file.artifact_bytes
        if (peer := self._only) is not None:
            self._schedule.drop(peer)
            self._journal.warning(
                "artifacts_bad_peer", f"{peer} is asked no more: its {file.path} has not the "
                "SHA-256 of the manifest", peer=peer, reason="wrong file",
            )  # fmt: skip
