"""Fetching from peers that are honest, slow, busy, gone, or lie."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import PIECE, Artifact, piece_range
from p2p_mesh.errors import ModelError, Overloaded, Unavailable
from p2p_mesh.journal import Entry, Journal
from p2p_mesh.node.fetching import MAX_SOURCES, SEEK, Fetching

Clock = trio.testing.MockClock

MANIFEST = Digest("f" * 64)
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


class Parts:
    """An artifact that is received, in memory; its hashes are known unless it is `blind`."""

    def __init__(self, artifact: Artifact, data: bytes, *, blind: bool = False) -> None:
        self.artifact = artifact
        self.data = data
        self.have: dict[int, bytes] = {}
        self.is_finished = False
        self.error: ModelError | None = None
        self._blind = blind

    @property
    def received(self) -> int:
        return sum(map(len, self.have.values()))

    def missing(self) -> tuple[int, ...]:
        count = -(-len(self.data) // PIECE)
        return tuple(number for number in range(count) if number not in self.have)

    async def put(self, piece: int, data: memoryview) -> bool:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        offset, length = piece_range(len(self.data), piece)
        is_good = self._blind or bytes(data) == self.data[offset : offset + length]
        if is_good:
            self.have[piece] = bytes(data)
        return is_good

    async def finish(self) -> bool:
        await trio.lowlevel.checkpoint()
        whole = b"".join(self.have[number] for number in sorted(self.have))
        self.is_finished = whole == self.data
        if not self.is_finished:
            await self.forget()
        return self.is_finished

    async def forget(self) -> None:
        self.have.clear()


class Package:
    def __init__(self, *sizes: int, blind: bool = False) -> None:
        self.ref = SimpleNamespace(manifest=MANIFEST)
        self.parts: dict[str, Parts] = {}
        for number, size in enumerate(sizes):
            data = Random(number).randbytes(65_521) * (1 + size // 65_521)
            artifact = Artifact(
                path=f"layers/{number}", tensor_count=1, tensor_bytes=size, artifact_bytes=size,
                sha256=Digest(hashlib.sha256(data[:size]).hexdigest()),
            )  # fmt: skip
            self.parts[artifact.path] = Parts(artifact, data[:size], blind=blind)

    @property
    def files(self) -> list[Artifact]:
        return [one.artifact for one in self.parts.values()]

    async def incoming(self, path: str) -> Parts:
        return self.parts[path]

    @property
    def is_whole(self) -> bool:
        return all(one.is_finished for one in self.parts.values())


class Peer:
    """Serves a package over a line, at its own pace, and perhaps not well."""

    def __init__(
        self,
        package: Package,
        *,
        pace: float = 0.01,
        errors: Sequence[Exception] = (),
        holds: Callable[[str], bool] = lambda _: True,
        change: Callable[[bytes], bytes | None] = lambda data: data,
    ) -> None:
        self.opened = 0
        self.asked: list[int] = []
        self.waiting = self.most_waiting = 0
        self._files = {one.artifact.sha256: one for one in package.parts.values()}
        self._holds, self._change, self._pace = holds, change, pace
        self._errors = list(errors)
        self._turn = trio.Lock()

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Peer]:
        self.opened += 1
        if self._errors:
            raise self._errors.pop(0)
        yield self

    async def held(self, manifest: Digest) -> frozenset[Digest]:
        assert manifest == MANIFEST
        return frozenset(
            one for one, parts in self._files.items() if self._holds(parts.artifact.path)
        )

    async def get(self, sha256: Digest, offset: int, length: int) -> memoryview | None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            async with self._turn:
                await trio.sleep(self._pace)
        finally:
            self.waiting -= 1
        self.asked.append(offset // PIECE)
        data = self._change(self._files[sha256].data[offset : offset + length])
        return None if data is None else memoryview(data)


def fetching(
    package: Package, peers: dict[PeerId, Peer], entries: list[Entry] | None = None, **more: Any
) -> Fetching:
    given: Any = package
    return Fetching(
        given,
        package.files,
        seek=more.get("seek", lambda: tuple(peers)),
        is_announced=more.get("is_announced", lambda peer: True),
        open_line=lambda peer: peers[peer].line(),
        rng=Random(1),
        journal=Journal(*([] if entries is None else [entries.append])),
        total=more.get("total"),
    )


async def test_all_comes_from_one(autojump_clock: Clock) -> None:
    package = Package(3 * PIECE + 7, 5, PIECE)
    found = fetching(package, {A: Peer(package)})
    await found.run()
    assert package.is_whole
    assert found.done == found.total == found.came == 4 * PIECE + 12
    assert found.senders == {A: found.total}
    assert found.share == 1.0
    assert found.rate > 0


async def test_several_share_the_work(autojump_clock: Clock) -> None:
    package = Package(24 * PIECE)
    peers = {peer: Peer(package) for peer in (A, B, C)}
    found = fetching(package, peers)
    await found.run()
    assert package.is_whole
    assert all(size >= 6 * PIECE for size in found.senders.values())
    assert sum(len(one.asked) for one in peers.values()) == 24


async def test_what_is_here_already_is_not_asked_for(autojump_clock: Clock) -> None:
    package = Package(3 * PIECE, PIECE)
    first, second = package.parts.values()
    first.have = {0: first.data[:PIECE], 2: first.data[2 * PIECE :]}
    second.have = {0: second.data}
    peer = Peer(package)
    found = fetching(package, {A: peer})
    await found.run()
    assert peer.asked == [1]
    assert package.is_whole
    assert (found.done, found.came) == (4 * PIECE, PIECE)


async def test_liar_is_dropped_at_once_and_the_rest_comes_from_others(
    autojump_clock: Clock,
) -> None:
    package, entries = Package(20 * PIECE), list[Entry]()
    liar = Peer(package, pace=0.001, change=lambda data: b"x" * len(data))
    found = fetching(package, {A: liar, B: Peer(package)}, entries)
    await found.run()
    assert package.is_whole
    assert found.senders == {B: 20 * PIECE}
    assert liar.opened == 1
    assert len(liar.asked) == 1
    assert [one.event for one in entries] == ["artifacts_bad_peer"]


async def test_half_a_piece_is_a_lie(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    found = fetching(package, {A: Peer(package, change=lambda data: data[:-1])})
    await found.run()
    assert not package.is_whole


async def test_cut_line_is_opened_again_and_nothing_is_lost(autojump_clock: Clock) -> None:
    package, cuts = Package(6 * PIECE), [3, 2, 1]

    def cut(data: bytes) -> bytes:
        if cuts and len(peer.asked) % cuts[0] == 0:
            cuts.pop()
            raise Unavailable("the stream broke")
        return data

    peer = Peer(package, change=cut)
    found = fetching(package, {A: peer})
    await found.run()
    assert package.is_whole
    assert found.came == 6 * PIECE
    assert peer.opened > 1


async def test_busy_peer_is_asked_again_later(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    busy = Overloaded("busy", retry_after=9.0)
    found = fetching(package, {A: Peer(package, errors=[busy, busy])})
    await found.run()
    assert package.is_whole
    assert trio.current_time() - found.started >= 18


async def test_dead_peer_is_given_up_and_all_that_is_left_is_said(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    dead = Peer(package, errors=[Unavailable("gone")] * 100)
    await fetching(package, {A: dead}).run()
    assert not package.is_whole
    assert 3 < dead.opened < 20


async def test_peer_of_which_nothing_is_known_is_tried_once(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    stranger = Peer(package, errors=[Unavailable("it does not speak artifacts")] * 100)
    await fetching(package, {A: stranger}, is_announced=lambda _: False).run()
    assert stranger.opened == 1


async def test_slow_peer_does_not_hold_up_the_end(autojump_clock: Clock) -> None:
    package = Package(12 * PIECE)
    slow, fast = Peer(package, pace=1000), Peer(package, pace=0.1)
    found = fetching(package, {A: slow, B: fast})
    await found.run()
    assert package.is_whole
    assert trio.current_time() - found.started < 10


async def test_files_come_from_whoever_has_them(autojump_clock: Clock) -> None:
    package = Package(PIECE, PIECE, PIECE)
    peers = {
        A: Peer(package, holds=lambda path: path == "layers/0"),
        B: Peer(package, holds=lambda path: path == "layers/1"),
        C: Peer(package, holds=lambda _: False),
    }
    found = fetching(package, peers)
    await found.run()
    done = [one.is_finished for one in package.parts.values()]
    assert done == [True, True, False]
    assert set(found.senders) == {A, B}


async def test_peer_that_lacks_what_it_promised_is_left(autojump_clock: Clock) -> None:
    package = Package(2 * PIECE)
    await fetching(package, {A: Peer(package, change=lambda _: None)}).run()
    assert not package.is_whole


async def test_who_comes_later_helps(autojump_clock: Clock) -> None:
    package = Package(20 * PIECE)
    peers = {A: Peer(package, pace=1.0), B: Peer(package, pace=0.01)}
    begin = trio.current_time()
    found = fetching(
        package, peers, seek=lambda: (A, B) if trio.current_time() - begin > SEEK else (A,)
    )
    await found.run()
    assert package.is_whole
    assert len(peers[B].asked) > 10


async def test_few_are_asked_at_a_time(autojump_clock: Clock) -> None:
    package = Package(40 * PIECE)
    peers = {PeerId(str(number)): Peer(package) for number in range(MAX_SOURCES + 5)}
    await fetching(package, peers).run()
    assert sum(bool(one.opened) for one in peers.values()) == MAX_SOURCES
    assert max(one.most_waiting for one in peers.values()) <= 8


async def test_full_disk_ends_it(autojump_clock: Clock) -> None:
    package = Package(3 * PIECE)
    package.parts["layers/0"].error = ModelError("no space left")
    with pytest.raises(ModelError, match="no space"):
        await fetching(package, {A: Peer(package), B: Peer(package)}).run()


async def test_lie_without_a_piece_list_is_nobodys(autojump_clock: Clock) -> None:
    package, entries = Package(2 * PIECE, PIECE, blind=True), list[Entry]()
    liar = Peer(package, change=lambda data: b"x" * len(data))
    found = fetching(package, {A: liar}, entries)
    await found.run()  # what is left may come from elsewhere
    assert (found.done, found.has_lies, package.is_whole) == (0, True, False)
    assert entries == []


async def test_liar_without_a_piece_list_is_found_when_each_is_asked_alone(
    autojump_clock: Clock,
) -> None:
    package, entries = Package(6 * PIECE, 4 * PIECE, blind=True), list[Entry]()
    liar = Peer(package, change=lambda data: b"x" * len(data))
    peers = {A: liar, B: Peer(package), C: Peer(package)}
    found = fetching(package, peers, entries)
    await found.run()
    assert not package.is_whole
    before = len(peers[C].asked)
    await found.run_one_by_one()
    assert package.is_whole
    assert found.done == found.total
    assert len(peers[C].asked) == before  # B had all
    assert {one.fields["peer"] for one in entries if one.event == "artifacts_bad_peer"} == {A}


async def test_what_was_right_already_is_not_asked_for_alone(autojump_clock: Clock) -> None:
    package = Package(PIECE, 2 * PIECE, blind=True)
    liar = Peer(package, holds=lambda path: path == "layers/1", change=lambda data: data[::-1])
    peers = {A: Peer(package, holds=lambda path: path == "layers/0"), B: liar}
    found = fetching(package, peers)
    await found.run()
    before = len(peers[A].asked)
    await found.run_one_by_one()
    assert [one.is_finished for one in package.parts.values()] == [True, False]
    assert (len(peers[A].asked), found.done) == (before, PIECE)


async def test_nobody_to_ask_ends_at_once(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    await fetching(package, {}).run()
    assert trio.current_time() == pytest.approx(fetching(package, {}).started)


async def test_what_the_hub_sends_is_counted(autojump_clock: Clock) -> None:
    package = Package(PIECE)
    found = fetching(package, {})
    await found.run()
    count = found.by_hub(package.files[0])
    count(0.5)
    count(1.0)
    assert (found.done, found.came) == (PIECE, PIECE)


async def test_what_is_wanted_of_a_file_is_the_total(autojump_clock: Clock) -> None:
    package = Package(3 * PIECE)
    (parts,) = package.parts.values()
    parts.have = {1: parts.data[PIECE : 2 * PIECE]}
    found = fetching(package, {A: Peer(package)}, total=2 * PIECE)
    assert found.total == 2 * PIECE
