"""Where the ranking of a model's experts comes from: the cache of this machine, or a peer's.

All nodes that serve shards of a model have to go by one ranking, for from it each works out its own
part. So of several the best counts everywhere: that of the most tokens, and of equal ones that with
the greater SHA-256. Who has one tells it whoever asks with less (specs/ranking/README.md).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import trio
from msgspec import Meta

from p2p_mesh.core.experts.layout import Layout
from p2p_mesh.core.experts.ranking import (
    MAX_RANKING,
    Ranking,
    check_ranking,
    decode_ranking,
    encode_ranking,
    file_name,
)
from p2p_mesh.core.names import Digest, PeerId
from p2p_mesh.core.package import Sha256
from p2p_mesh.core.records import Count
from p2p_mesh.core.wire import ErrorMessage, Message, decode, encode
from p2p_mesh.errors import MeshError, ModelError, RemoteError
from p2p_mesh.serve.backend import Mesh, Stream
from p2p_mesh.settings import cache_dir

RANKING = "plugin/expert_shards/ranking"
BACKEND = "expert_shards"
"""Who names it in an announcement can be asked."""

MAX_ASKED = 32
"""Peers that are asked for a ranking,"""
AT_ONCE = 4
"""so many at a time."""
PATIENCE = 20.0
"""Seconds that a peer has for the whole of an answer, and this node for a question."""


class Ask(Message, frozen=True, kw_only=True, tag="ask"):
    """Is there a better ranking of this model than the asker's?"""

    model: Sha256
    tokens: Count = 0
    """Of the asker's own; 0: it has none."""
    sha256: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""


class Better(Message, frozen=True, kw_only=True, tag="ranking"):
    """The whole of an answer: this one."""

    ranking: Annotated[bytes, Meta(min_length=1, max_length=MAX_RANKING)]


class Lacking(Message, frozen=True, tag="lacking"):
    """The whole of an answer: there is none, or none that is better."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A ranking, and the bytes that it is everywhere."""

    ranking: Ranking
    data: bytes

    @classmethod
    def of(cls, ranking: Ranking) -> Ranked:
        return cls(ranking, encode_ranking(ranking))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def worth(self) -> tuple[int, str]:
        """The greater is the better."""
        return self.ranking.tokens, self.sha256


def place(model: Digest) -> Path:
    """Where the ranking of a model is kept."""
    return cache_dir() / "rankings" / file_name(model)


def kept(model: Digest) -> Ranked | None:
    """The ranking of a model that is here; one that is damaged counts as none. Blocks."""
    try:
        with place(model).open("rb") as file:
            return _read(file.read(MAX_RANKING + 1), model)
    except (OSError, ModelError):
        return None


def keep(ranked: Ranked) -> None:
    """Blocks. Raises ModelError where it cannot be written."""
    path = place(ranked.ranking.model)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(ranked.data)
        aside.replace(path)
    except OSError as error:
        raise ModelError(f"the ranking cannot be written to {path}: {error.strerror}") from error


def _read(data: bytes, model: Digest) -> Ranked:
    """Raises ModelError for what is no ranking of that model."""
    ranking = decode_ranking(data)
    if ranking.model != model:
        raise ModelError(f"it is the ranking of another model, {ranking.model}")
    return Ranked.of(ranking)


# Between nodes


async def answer(stream: Stream, _: PeerId, look: Callable[[Digest], Ranked | None] = kept) -> None:
    """Answers one question, by what is kept here. Raises RemoteError for what is none."""
    with trio.move_on_after(PATIENCE):
        asked: Ask = decode(await stream.receive(), Ask)
        own = await trio.to_thread.run_sync(look, asked.model)
        is_better = own is not None and own.worth > (asked.tokens, asked.sha256)
        found = Better(ranking=own.data) if own is not None and is_better else Lacking()
        await stream.send(encode(found))


async def find(model: Digest, mesh: Mesh, layout: Layout) -> Ranked | None:
    """The best that this node or a peer has of a model with those experts; it is kept here."""
    found = first = await trio.to_thread.run_sync(_fitting, model, layout)
    turns = trio.CapacityLimiter(AT_ONCE)

    async def ask(peer: PeerId) -> None:
        nonlocal found
        async with turns:
            other = await _asked(mesh, peer, (model, layout), found)
        if other is not None and (found is None or other.worth > found.worth):
            found = other

    async with trio.open_nursery() as nursery:
        for peer in _peers(mesh):
            nursery.start_soon(ask, peer)
    if found is not None and found is not first:
        with suppress(ModelError):  # without a cache it is asked for again
            await trio.to_thread.run_sync(keep, found)
    return found


def _fitting(model: Digest, layout: Layout) -> Ranked | None:
    """The ranking that is here, where it is of those experts."""
    if (own := kept(model)) is None:
        return None
    try:
        check_ranking(own.ranking, layout)
    except ModelError:
        return None
    return own


def _peers(mesh: Mesh) -> Sequence[PeerId]:
    """Whom to ask, the nearest first."""
    able = [peer for peer, announced in mesh.peers() if BACKEND in announced.backends]
    return sorted(able, key=lambda peer: (mesh.round_trip(peer) or 1.0, peer))[:MAX_ASKED]


async def _asked(
    mesh: Mesh, peer: PeerId, wanted: tuple[Digest, Layout], own: Ranked | None
) -> Ranked | None:
    """What one peer has; None too where it fails, or sends what is no ranking."""
    tokens, sha256 = own.worth if own is not None else (0, "")
    try:
        with trio.move_on_after(PATIENCE):
            async with mesh.open_stream(peer, RANKING) as stream:
                await stream.send(encode(Ask(model=wanted[0], tokens=tokens, sha256=sha256)))
                return await trio.to_thread.run_sync(_better, await stream.receive(), *wanted)
    except MeshError as error:
        mesh.say("ranking_refused", f"{peer} gives no ranking of the experts: {error}")
    return None


def _better(frame: bytes, model: Digest, layout: Layout) -> Ranked | None:
    """Raises RemoteError for what is no answer, or no ranking."""
    found: Better | Lacking | ErrorMessage = decode(frame, Better | Lacking | ErrorMessage)
    if isinstance(found, ErrorMessage):
        raise found.error()
    if isinstance(found, Lacking):
        return None
    try:
        ranked = _read(found.ranking, model)
        check_ranking(ranked.ranking, layout)
    except ModelError as error:
        raise RemoteError(f"it sent a bad ranking: {error}") from error
    return ranked
