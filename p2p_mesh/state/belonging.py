"""Which mesh a node belongs to, and by what credential; and which meshes it has been in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from p2p_mesh.core.invite import Credential, Invite, Membership, Ticket, check, found, join
from p2p_mesh.core.names import MeshId, mesh_id
from p2p_mesh.core.signature import Key, public_bytes
from p2p_mesh.core.wire import decode
from p2p_mesh.errors import LocalError, SettingsError
from p2p_mesh.state.directory import folder, locked, read, write

_Seed = Annotated[bytes, Meta(max_length=32)]

SHORTEST = 4
"""Digits of a mesh id that are taken for one."""


class Belonging(Struct, frozen=True, kw_only=True):
    """The mesh that a node belongs to."""

    mesh: Key
    """The mesh's public key."""
    name: str
    credential: Credential
    seeds: tuple[str, ...] = ()
    invite_seed: _Seed = b""
    """Of the invite that the node prints: the same one each time it starts."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """The p2p port of last time, taken again if it is free, so that old invites still work."""
    token_seed: _Seed = b""
    """Of the token that it joined by, for a membership of a new identity."""

    @property
    def id(self) -> MeshId:
        return mesh_id(self.mesh)

    @property
    def membership(self) -> Membership:
        membership: Membership = decode(self.credential.membership.payload, Membership)
        return membership


def mesh_key(directory: Path) -> Ed25519PrivateKey | None:
    """The private key of a mesh that is held here, if one is."""
    path = directory / "mesh.key"
    data = read(path)
    try:
        return None if data is None else Ed25519PrivateKey.from_private_bytes(data)
    except ValueError as error:
        raise SettingsError(f"the mesh key {path} cannot be read: {error}") from error


def awaiting(directory: Path, tickets: tuple[Ticket, ...], node: bytes) -> Ticket | None:
    """The token that must be redeemed before the node with the public key `node` can belong to
    its mesh; None where it can belong at once.
    """
    if not tickets or not tickets[0].invite.is_redeemed:
        return None
    return None if _redeemed(directory, tickets[0], node) else tickets[0]


def belong(
    directory: Path,
    tickets: tuple[Ticket, ...],
    node: bytes,
    name: str,
    now: float,
    *,
    credential: Credential | None = None,
) -> Belonging:
    """The mesh that the node with the public key `node` belongs to from now on: the one it has
    tokens for, else the one it was in, else a new one of its own. `credential` is what the first
    token was redeemed for.

    Raises Refused where its membership has ended; what is on disk then stays as it was.
    """
    known = current(directory)
    if tickets:
        belonging = _joined(directory, tickets, node, credential)
    else:
        again = renewed(directory, known, node) if known is not None else None
        belonging = again or _founded(directory, node, name)
    check(belonging.credential, belonging.mesh, now)
    if known is not None and known.mesh != belonging.mesh:
        keep(directory, known)
    remember(directory, belonging)
    return belonging


def _joined(
    directory: Path, tickets: tuple[Ticket, ...], node: bytes, credential: Credential | None
) -> Belonging:
    first = tickets[0]
    if any(ticket.invite.mesh != first.invite.mesh for ticket in tickets):
        raise SettingsError("the tokens are of different meshes; a node belongs to one")
    if credential is None:
        redeemed = _redeemed(directory, first, node)
        credential = redeemed.credential if redeemed else join(first, node)
    past = of_mesh(directory, first.mesh)
    return Belonging(
        mesh=first.invite.mesh,
        name=first.invite.name,
        credential=credential,
        seeds=tuple(dict.fromkeys(seed for ticket in tickets for seed in ticket.invite.seeds)),
        invite_seed=past.invite_seed if past else b"",
        port=past.port if past else 0,
        token_seed=b"" if first.invite.is_redeemed else first.seed,
    )


def _redeemed(directory: Path, ticket: Ticket, node: bytes) -> Belonging | None:
    """What the token was redeemed for already."""
    past = of_mesh(directory, ticket.mesh)
    if past is None or past.membership.peer != node:
        return None
    return past if past.membership.invite == ticket.invite.key else None


def renewed(directory: Path, known: Belonging, node: bytes) -> Belonging | None:
    """A former belonging for the node with that public key: as it was, or with a new membership
    by the mesh key or the token, where one of them is kept.
    """
    if known.membership.peer == node:
        return known
    key = mesh_key(directory)
    if key is not None and public_bytes(key) == known.mesh:
        return msgspec.structs.replace(known, credential=found(key, node))
    signed = known.credential.invite
    if signed is None or len(known.token_seed) != 32:
        return None
    ticket = Ticket(decode(signed.payload, Invite), signed, known.token_seed)
    return msgspec.structs.replace(known, credential=join(ticket, node))


def _founded(directory: Path, node: bytes, name: str) -> Belonging:
    key = mesh_key(directory)
    if key is None:
        key = Ed25519PrivateKey.generate()
        write(directory / "mesh.key", key.private_bytes_raw())
    return Belonging(mesh=public_bytes(key), name=name, credential=found(key, node))


def remember(directory: Path, belonging: Belonging) -> None:
    """Makes it the mesh that the node belongs to."""
    keep(directory, belonging)
    write(directory / "mesh", msgspec.msgpack.encode(belonging))


def keep(directory: Path, belonging: Belonging) -> None:
    """Remembers a mesh, so that it can be chosen."""
    write(folder(directory, belonging.id) / "mesh", msgspec.msgpack.encode(belonging))


def current(directory: Path) -> Belonging | None:
    """The mesh that the node belongs to, if it ever ran."""
    return _read(directory / "mesh")


def of_mesh(directory: Path, mesh: MeshId) -> Belonging | None:
    """The belonging to one mesh, of now or of former times."""
    known = current(directory)
    if known is not None and known.id == mesh:
        return known
    return _read(directory / "meshes" / mesh / "mesh")


def meshes(directory: Path) -> tuple[Belonging, ...]:
    """Every mesh that the node has been in: first the one that it is in."""
    known = current(directory)
    past = [_read(path) for path in sorted((directory / "meshes").glob("*/mesh"))]
    others = [one for one in past if one is not None and (known is None or one.mesh != known.mesh)]
    return (*((known,) if known else ()), *sorted(others, key=lambda one: (one.name, one.id)))


def choose(directory: Path, mesh: str) -> Belonging:
    """Makes a mesh that the node has been in the one that it belongs to from its next start:
    named by its id, the beginning of it, or its name. Raises LocalError.
    """
    with locked(directory):
        known = meshes(directory)
        fits = [one for one in known if mesh in (one.id, one.name) or _begins(one.id, mesh)]
        if len(fits) != 1:
            names = ", ".join(f"{one.name} ({one.id})" for one in fits or known) or "none"
            what = "is more than one of" if fits else "is none of"
            raise LocalError(f"{mesh!r} {what} the meshes that this node knows: {names}")
        if (now := current(directory)) is not None:
            keep(directory, now)
        remember(directory, fits[0])
        return fits[0]


def _begins(mesh: MeshId, text: str) -> bool:
    return len(text) >= SHORTEST and mesh.startswith(text)


def _read(path: Path) -> Belonging | None:
    data = read(path)
    try:
        return None if data is None else msgspec.msgpack.decode(data, type=Belonging)
    except msgspec.MsgspecError as error:
        raise SettingsError(
            f"{path} is damaged ({error}); remove it, and join again or start a new mesh"
        ) from error
