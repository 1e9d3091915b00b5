"""What a node keeps on disk: its lock, its mesh, and how the commands find it.

DIR/lock        held while a node runs on DIR
DIR/node.json   of the running node: pid, URLs, the token of its management port (0600)
DIR/node.key    the node's identity (net/identity.py)
DIR/mesh.key    the private key of the mesh that this node founded (0600)
DIR/api.key     the key that --listen asks for, where none was given (0600)
DIR/mesh        the mesh that this node belongs to, and its credential (0600)
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta, Struct

from p2p_mesh.core.invite import (
    Credential,
    Key,
    Membership,
    Ticket,
    check,
    found,
    join,
    make_invite,
    public_bytes,
)
from p2p_mesh.core.names import MeshId, mesh_id
from p2p_mesh.core.records import Role
from p2p_mesh.core.wire import decode
from p2p_mesh.errors import LocalError, SettingsError


class NodeFile(Struct, frozen=True, kw_only=True):
    """node.json: how the commands find the running node."""

    pid: int
    name: str
    api_url: str
    console_url: str
    token: str


class Belonging(Struct, frozen=True, kw_only=True):
    """The mesh that a node belongs to."""

    mesh: Key
    """The mesh's public key."""
    name: str
    credential: Credential
    seeds: tuple[str, ...] = ()
    invite_seed: Annotated[bytes, Meta(max_length=32)] = b""
    """Of the invite that the node prints: the same one each time it starts."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """The p2p port of last time, taken again if it is free, so that old invites still work."""

    @property
    def id(self) -> MeshId:
        return mesh_id(self.mesh)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the data directory for this process. Raises LocalError, naming the node that has it."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(
            f"the data directory {directory} cannot be used: {error.strerror}; "
            "choose another with --data-dir"
        ) from error
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LocalError(_in_use(directory)) from error
        yield
    finally:
        os.close(file)


def _in_use(directory: Path) -> str:
    other = running(directory)
    who = f"{other.name} (process {other.pid})" if other else "another node"
    return f"{who} runs on {directory}; stop it, or choose another with --data-dir"


def running(directory: Path) -> NodeFile | None:
    """The node.json of a directory; None where there is none that can be read."""
    try:
        return msgspec.json.decode((directory / "node.json").read_bytes(), type=NodeFile)
    except (OSError, msgspec.MsgspecError):
        return None


@contextmanager
def published(directory: Path, node: NodeFile) -> Iterator[None]:
    """Shows the running node to the commands for as long as the context lasts."""
    path = directory / "node.json"
    _write(path, json.dumps(msgspec.to_builtins(node), indent=2).encode())
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


def mesh_key(directory: Path) -> Ed25519PrivateKey | None:
    """The private key of the mesh that was founded here, if one was."""
    path = directory / "mesh.key"
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise SettingsError(f"the mesh key {path} cannot be read: {error}") from error


def belong(
    directory: Path, tickets: tuple[Ticket, ...], node: bytes, name: str, now: float
) -> Belonging:
    """The mesh that the node with the public key `node` belongs to from now on: the one it has
    tokens for, else the one it was in, else a new one of its own.

    Raises Refused where its membership has ended; what is on disk then stays as it was.
    """
    known = _read(directory)
    if known is not None and not _is_of(known, node):
        known = None  # the node's identity is a new one, and its membership went with the old
    if tickets:
        belonging = _joined(tickets, node)
        if known is not None and known.mesh == belonging.mesh:
            belonging = msgspec.structs.replace(
                belonging, port=known.port, invite_seed=known.invite_seed
            )
    elif known is not None:
        belonging = known
    else:
        belonging = _founded(directory, node, name)
    check(belonging.credential, belonging.mesh, now)
    remember(directory, belonging)
    return belonging


def _joined(tickets: tuple[Ticket, ...], node: bytes) -> Belonging:
    first = tickets[0]
    if any(ticket.invite.mesh != first.invite.mesh for ticket in tickets):
        raise SettingsError("the tokens are of different meshes; a node belongs to one")
    seeds = tuple(dict.fromkeys(seed for ticket in tickets for seed in ticket.invite.seeds))
    return Belonging(
        mesh=first.invite.mesh,
        name=first.invite.name,
        credential=join(first, node),
        seeds=seeds,
    )


def _is_of(belonging: Belonging, node: bytes) -> bool:
    membership: Membership = decode(belonging.credential.membership.payload, Membership)
    return membership.peer == node


def _founded(directory: Path, node: bytes, name: str) -> Belonging:
    key = mesh_key(directory)
    if key is None:
        key = Ed25519PrivateKey.generate()
        _write(directory / "mesh.key", key.private_bytes_raw())
    return Belonging(mesh=public_bytes(key), name=name, credential=found(key, node))


def remember(directory: Path, belonging: Belonging) -> None:
    _write(directory / "mesh", msgspec.msgpack.encode(belonging))


def _read(directory: Path) -> Belonging | None:
    path = directory / "mesh"
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Belonging)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsError(
            f"{path} is damaged ({error}); remove it, and join again or start a new mesh"
        ) from error


class Inviter:
    """Makes the invites of a mesh, on the node that holds its key."""

    def __init__(self, directory: Path, belonging: Belonging) -> None:
        key = mesh_key(directory)
        self._key = key if key is not None and public_bytes(key) == belonging.mesh else None
        self._directory = directory
        self._belonging = belonging

    def standing(self, seeds: tuple[str, ...]) -> str | None:
        """The invite that the node prints; None where it does not hold the mesh key."""
        if self._key is None:
            return None
        if len(self._belonging.invite_seed) != 32:
            self._belonging = msgspec.structs.replace(
                self._belonging, invite_seed=secrets.token_bytes(32)
            )
            remember(self._directory, self._belonging)
        return make_invite(
            self._key, self._belonging.invite_seed, name=self._belonging.name, seeds=seeds
        )

    def make(self, seeds: tuple[str, ...], role: Role, until: int | None) -> str:
        """A new invite. Raises LocalError where this node does not hold the mesh key."""
        if self._key is None:
            raise LocalError(
                "this node does not hold the mesh key; ask the node that started the mesh"
            )
        return make_invite(
            self._key, secrets.token_bytes(32), name=self._belonging.name,
            role=role, until=until, seeds=seeds,
        )  # fmt: skip


def _write(path: Path, data: bytes) -> None:
    """Writes a file of mode 0600 in one step: it is there whole, or as it was."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.unlink(missing_ok=True)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


def api_key(directory: Path) -> tuple[str, bool]:
    """The API key kept for `--listen`, and whether it was made just now."""
    path = directory / "api.key"
    try:
        key = path.read_text().strip()
        if not key:
            raise SettingsError(f"the API key {path} is empty; remove it to get a new one")
        return key, False
    except FileNotFoundError:
        key = f"mn-{secrets.token_urlsafe(24)}"
        _write(path, key.encode())
        return key, True
    except (OSError, ValueError) as error:
        raise SettingsError(f"the API key {path} cannot be read: {error}") from error
