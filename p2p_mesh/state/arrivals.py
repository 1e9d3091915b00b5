"""By which invite each member came: so that a peer that is put out cannot come back by it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from p2p_mesh.core.invite import Member
from p2p_mesh.core.names import public_key
from p2p_mesh.core.signature import Key
from p2p_mesh.state.directory import read, write

MAX_ARRIVALS = 4096
"""The newest are kept."""


class Arrival(Struct, frozen=True, array_like=True):
    peer: Key
    invite: Key
    redeemed: bool = False
    """The mesh key signed its membership; else it made it itself, with the token."""


_File = Annotated[tuple[Arrival, ...], Meta(max_length=MAX_ARRIVALS)]


class Arrivals:
    """What is known of the invites of members, whoever made these."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = {one.peer: one for one in _read(path)}

    def note(self, members: Iterable[Member]) -> None:
        """Writes down by what these came. Raises SettingsError."""
        found = (
            Arrival(public_key(one.peer), one.invite, one.redeemed)
            for one in members
            if one.invite is not None
        )
        news = {one.peer: one for one in found if self._known.get(one.peer) != one}
        if not news:
            return
        for one in self._known.values():
            news.setdefault(one.peer, one)
        kept = tuple(islice(news.values(), MAX_ARRIVALS))
        write(self._path, msgspec.msgpack.encode(kept))
        self._known = {one.peer: one for one in kept}

    def invite_of(self, peer: bytes) -> bytes | None:
        found = self._known.get(peer)
        return found.invite if found else None

    def by_token(self, invite: bytes) -> set[bytes]:
        """Who came by an invite with its token alone."""
        return {
            one.peer for one in self._known.values() if one.invite == invite and not one.redeemed
        }

    def invites(self) -> set[bytes]:
        return {one.invite for one in self._known.values()}


def _read(path: Path) -> tuple[Arrival, ...]:
    """Nothing where the file is damaged: it is learned again from who connects."""
    try:
        return msgspec.msgpack.decode(read(path) or b"\x90", type=_File)
    except msgspec.MsgspecError:
        return ()
