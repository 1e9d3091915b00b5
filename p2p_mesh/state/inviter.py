"""Who comes in, and who is put out, at a node that holds the mesh key.

The invites made here are on disk, with who redeemed them: an invite that is redeemed is counted
where it was made, and nowhere else, so that two holders of the key never count past each other.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from p2p_mesh.core.invite import (
    MAX_USES,
    TOKEN_PREFIX,
    Credential,
    Invite,
    Member,
    invite_id,
    make_invite,
    read_token,
    redeemed,
)
from p2p_mesh.core.names import PeerId, peer_id, public_key
from p2p_mesh.core.records import Count, Role
from p2p_mesh.core.revocation import (
    NOTHING,
    Revoked,
    is_newer,
    merge,
    read_revocation,
    revoke_invite,
    revoke_peer,
    seal_revocation,
)
from p2p_mesh.core.signature import Key, Signed, public_bytes
from p2p_mesh.errors import LocalError, Refused, SettingsError, Unavailable
from p2p_mesh.state.arrivals import Arrivals
from p2p_mesh.state.belonging import Belonging, mesh_key, remember
from p2p_mesh.state.directory import folder, read, write
from p2p_mesh.state.revocation import keep_revocation, revocation

MAX_INVITES = 1024
"""Invites that are kept; the oldest of those that let nobody in any more make room."""


class Issued(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An invite that was made here."""

    key: Key
    role: Role
    made: Count
    until: Count | None = None
    uses: Annotated[int, Meta(ge=1, le=MAX_USES)] | None = None
    join_by: Count | None = None
    came: Annotated[tuple[Key, ...], Meta(max_length=MAX_USES)] = ()
    """The nodes that redeemed it; or those that were seen, where it is not redeemed."""

    @property
    def is_redeemed(self) -> bool:
        return self.uses is not None or self.join_by is not None


class InviteStatus(Struct, frozen=True, kw_only=True):
    """An invite as its maker sees it."""

    id: str
    role: Role
    made: int
    until: int | None
    uses: int | None
    used: int
    """Nodes that came by it, as far as is known: all of them, where it is redeemed."""
    join_by: int | None
    revoked: bool
    closed: bool
    """Nobody new comes in by it; those that are in stay."""
    peers: tuple[PeerId, ...]


_File = Annotated[tuple[Issued, ...], Meta(max_length=MAX_INVITES)]


class Inviter:
    """The invites of a mesh, and its revocation. Every method touches files, and may be called
    from any thread; those that take the mesh key raise LocalError where it is not held here.
    """

    def __init__(self, directory: Path, belonging: Belonging, clock: Callable[[], float]) -> None:
        key = mesh_key(directory)
        self._key = key if key is not None and public_bytes(key) == belonging.mesh else None
        self._directory = directory
        self._belonging = belonging
        self._clock = clock
        self._lock = threading.Lock()
        self._path = folder(directory, belonging.id) / "invites"
        self._issued = {one.key: one for one in _read(self._path)}
        self._arrivals = Arrivals(self._path.with_name("arrivals"))
        self._signed = revocation(directory, belonging.id)
        self._revoked = self._read_revoked(self._signed)

    def _read_revoked(self, signed: Signed | None) -> Revoked:
        return NOTHING if signed is None else read_revocation(signed, self._belonging.mesh)

    @property
    def is_holder(self) -> bool:
        """This node holds the mesh key."""
        return self._key is not None

    def _need(self) -> Ed25519PrivateKey:
        if self._key is None:
            raise LocalError(
                "this node does not hold the mesh key; ask the node that started the mesh"
            )
        return self._key

    # Invites

    def standing(self, seeds: tuple[str, ...]) -> str | None:
        """The invite that the node prints; None where it does not hold the mesh key."""
        if self._key is None:
            return None
        with self._lock:
            seed = self._belonging.invite_seed
            if len(seed) != 32 or self._revoked.is_shut(_public(seed)):
                seed = secrets.token_bytes(32)
                self._belonging = msgspec.structs.replace(self._belonging, invite_seed=seed)
                remember(self._directory, self._belonging)
            if _public(seed) not in self._issued:
                with suppress(_Full):  # it is good all the same, and only not listed
                    self._save(Issued(key=_public(seed), role="member", made=int(self._clock())))
            return make_invite(self._key, seed, name=self._belonging.name, seeds=seeds)

    def make(
        self,
        seeds: tuple[str, ...],
        role: Role,
        until: int | None,
        uses: int | None = None,
        join_by: int | None = None,
    ) -> str:
        """A new invite, as a token. With `uses` or `join_by` it is redeemed at this node."""
        key, seed = self._need(), secrets.token_bytes(32)
        if uses is not None and not 1 <= uses <= MAX_USES:
            raise LocalError(f"an invite is for 1 to {MAX_USES} uses")
        with self._lock:
            self._save(Issued(
                key=_public(seed), role=role, made=int(self._clock()), until=until, uses=uses,
                join_by=join_by,
            ))  # fmt: skip
        return make_invite(
            key, seed, name=self._belonging.name, role=role, until=until, seeds=seeds, uses=uses,
            join_by=join_by,
        )  # fmt: skip

    def _save(self, issued: Issued) -> None:
        """Puts it on disk, before anybody is told."""
        kept = {**self._issued, issued.key: issued}
        over = len(kept) - MAX_INVITES
        if over > 0:
            done = sorted((one for one in kept.values() if self._is_done(one)), key=_age)
            for one in done[:over]:
                del kept[one.key]
        if len(kept) > MAX_INVITES:
            raise _Full(
                f"{MAX_INVITES} invites are open; revoke some (meshnode revoke), and give invites "
                "an end (--until, --join-by or --uses), so that they go"
            )
        write(self._path, msgspec.msgpack.encode(tuple(kept.values())))
        self._issued = kept

    def redeem(self, invite: Invite, peer: bytes) -> Credential:
        """The membership of a node that has the invite's token; the same one each time it asks.
        Raises Refused where the invite lets it in no more, and Unavailable where it is not
        counted here.
        """
        if self._key is None:
            raise Unavailable("this node does not hold the mesh key")
        with self._lock:
            issued = self._issued.get(invite.key)
            if issued is None:
                raise Unavailable("the invite was not made at this node, which counts its own")
            if self._revoked.is_shut(invite.key) or peer in self._revoked.peers:
                raise Refused("the invite was revoked", reason="revoked")
            if peer not in issued.came:
                self._check_open(issued)
                self._save(msgspec.structs.replace(issued, came=(*issued.came, peer)))
        return redeemed(self._key, invite, peer)

    def _is_done(self, issued: Issued) -> bool:
        """Nobody new comes in by it ever again."""
        if self._revoked.is_shut(issued.key):
            return True
        try:
            self._check_open(issued)
        except Refused as error:
            # Without a number of uses it is in the members' hands, however many have been seen.
            return error.reason == "expired" or issued.is_redeemed
        return False

    def _check_open(self, issued: Issued) -> None:
        now, most = self._clock(), issued.uses or MAX_USES
        if issued.join_by is not None and issued.join_by <= now:
            raise Refused("the invite was to be used earlier than this", reason="expired")
        if issued.until is not None and issued.until <= now:
            raise Refused("memberships by the invite have ended", reason="expired")
        if len(issued.came) >= most:
            raise Refused(f"the invite was used {most} times, and is for no more", reason="spent")

    def saw(self, members: Iterable[Member]) -> None:
        """Writes down who came by which invite, to know it when they are away."""
        seen = tuple(members)
        with self._lock:
            self._arrivals.note(seen)
            by_invite: dict[bytes, set[bytes]] = {}
            for one in seen:
                if one.invite is not None:
                    by_invite.setdefault(one.invite, set()).add(public_key(one.peer))
            for issued in tuple(self._issued.values()):
                came = by_invite.get(issued.key, set())
                more = tuple(sorted(came.difference(issued.came)))[: MAX_USES - len(issued.came)]
                if more and not issued.is_redeemed:
                    self._save(msgspec.structs.replace(issued, came=issued.came + more))

    def invites(self, members: Iterable[Member] = ()) -> list[InviteStatus]:
        """Every invite made here, the newest first, and which of `members` came by it."""
        self._need()
        seen = tuple(members)
        with self._lock:
            found = [self._status(one, seen) for one in self._issued.values()]
        return sorted(found, key=lambda one: (-one.made, one.id))

    def _status(self, issued: Issued, members: tuple[Member, ...]) -> InviteStatus:
        came = {peer_id(key) for key in issued.came}
        came |= {member.peer for member in members if member.invite == issued.key}
        revoked = issued.key in self._revoked.invites
        return InviteStatus(
            id=invite_id(issued.key),
            role=issued.role,
            made=issued.made,
            until=issued.until,
            uses=issued.uses,
            used=len(came),
            join_by=issued.join_by,
            revoked=revoked,
            closed=not revoked and self._revoked.is_shut(issued.key),
            peers=tuple(sorted(came)),
        )

    # Revocation

    def revoke(self, text: str, members: Iterable[Member]) -> Signed:
        """The newest revocation, which takes back an invite (its id, or its token) or a peer
        (its peer id) as well. `members` are those that the mesh has now.
        """
        key, seen = self._need(), tuple(members)
        with self._lock:
            before, after = self._signed, self._without(text.strip(), seen)
            same = msgspec.structs.replace(after, version=self._revoked.version) == self._revoked
            if before is not None and same:
                return before
            return self._hold(seal_revocation(after, key), after)

    def invite_of(self, text: str, members: Iterable[Member]) -> str | None:
        """The id of the invite that a peer came by, or that a text names; None where that of the
        peer is not known. Raises LocalError where the text is none of the two.
        """
        seen = tuple(members)
        with self._lock:
            peer = _peer(text.strip())
            invite = self._came_by(peer, seen) if peer else self._named(text.strip(), seen)
        return None if invite is None else invite_id(invite)

    def _without(self, text: str, members: tuple[Member, ...]) -> Revoked:
        peer = _peer(text)
        if peer is None:
            return revoke_invite(self._revoked, self._named(text, members))
        if peer == self._belonging.membership.peer:
            raise LocalError("this node holds the mesh key, and cannot put itself out")
        invite = self._came_by(peer, members)
        return revoke_peer(self._revoked, peer, invite, self._stay(invite, members))

    def _stay(self, invite: bytes | None, members: tuple[Member, ...]) -> set[bytes]:
        """Who is in by an invite with the token alone, and so must be named when it is closed."""
        issued = self._issued.get(invite) if invite else None
        if invite is None or (issued is not None and issued.is_redeemed):
            return set()
        came = {
            public_key(one.peer) for one in members if one.invite == invite and not one.redeemed
        }
        came |= self._arrivals.by_token(invite)
        return came.union(issued.came if issued else ()) - set(self._revoked.peers)

    def _named(self, text: str, members: tuple[Member, ...]) -> bytes:
        """The key of the invite that a text means."""
        if text.startswith(TOKEN_PREFIX):
            invite = read_token(text).invite
            if invite.mesh != self._belonging.mesh:
                raise LocalError("the token is of another mesh")
            return invite.key
        known = {*self._issued, *(one.invite for one in members if one.invite is not None)}
        for key in known | self._arrivals.invites():
            if invite_id(key) == text:
                return key
        raise LocalError(
            f"{text[:80]!r} is no invite (meshnode invites), no peer id (meshnode status) and no "
            "token of this mesh"
        )

    def _came_by(self, peer: bytes, members: tuple[Member, ...]) -> bytes | None:
        """The invite of a peer, by what is known of it."""
        for member in members:
            if member.peer == peer_id(peer):
                return member.invite
        made = next((one.key for one in self._issued.values() if peer in one.came), None)
        return made or self._arrivals.invite_of(peer)

    def heard(self, signed: Signed) -> Signed | None:
        """Keeps a revocation that another node told. Where it lacks what was revoked here, the
        next one, which has both. Raises RemoteError where it is not the mesh's.
        """
        with self._lock:
            theirs = read_revocation(signed, self._belonging.mesh)
            if self._key is None:
                if is_newer(theirs, self._revoked):
                    self._hold(signed, theirs)
                return None
            both = merge(self._revoked, theirs)
            if both == self._revoked:
                return None
            if both == theirs:
                self._hold(signed, theirs)
                return None
            return self._hold(seal_revocation(both, self._key), both)

    def _hold(self, signed: Signed, revoked: Revoked) -> Signed:
        keep_revocation(self._directory, self._belonging.id, signed)
        self._signed, self._revoked = signed, revoked
        return signed


class _Full(LocalError):
    """No invite more can be kept."""


def _age(issued: Issued) -> int:
    return issued.made


def _peer(text: str) -> bytes | None:
    try:
        return public_key(PeerId(text))
    except ValueError:
        return None


def _public(seed: bytes) -> bytes:
    return public_bytes(Ed25519PrivateKey.from_private_bytes(seed))


def _read(path: Path) -> tuple[Issued, ...]:
    data = read(path)
    try:
        return () if data is None else msgspec.msgpack.decode(data, type=_File)
    except msgspec.MsgspecError as error:
        raise SettingsError(
            f"{path} is damaged ({error}): restore it from a backup, or remove it, and the invites "
            "that are redeemed here are good for nobody any more"
        ) from error
